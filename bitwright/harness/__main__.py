from bitwright.harness import main

main()
