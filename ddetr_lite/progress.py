"""Whether anybody looks at a progress bar."""

import sys


def hidden(progress: bool) -> bool:
    """For tqdm's `disable`: True where no bar is wanted, or stderr is a file, which would keep every state of the bar.

    In a notebook it is shown.
    """
    notebook = "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None
    return not progress or not (sys.stderr.isatty() or notebook)
