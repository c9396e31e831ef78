"""What this project claims, for anyone to repeat: `ddetr-lite bench ...`.

Speed (`msda`, `step`, `input`): ratios against a peer in the same run, all of them taking turns, since clocks of different runs
and machines cannot be compared. Accuracy (`studies`): models that are trained and compared by one method.
"""
