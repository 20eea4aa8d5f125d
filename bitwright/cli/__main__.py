"""``python -m bitwright.cli``: the same as the ``bitwright`` script."""

from bitwright.cli.main import main

main()
