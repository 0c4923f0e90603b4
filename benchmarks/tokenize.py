"""How fast do videos become codes? Ours beside the limit of the hardware, and beside what others would write.

    python benchmarks/tokenize.py

This file is a door alone, and a careful one. Python looks in the folder of a script before its own library,
so that `python benchmarks/step.py` finds this file where it wants `tokenize` of the standard library. It is
then given that one.
"""

import importlib.machinery
import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    from benchmarks.tokenize_run import main

    main()
elif __name__ == "tokenize":
    spec = importlib.machinery.PathFinder.find_spec("tokenize", [os.path.dirname(os.__file__)])
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(sys.modules[__name__])
