"""``python -m bitwright``"""

from bitwright.cli.main import main

main()
