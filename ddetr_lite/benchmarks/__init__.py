"""What this project claims about speed, for anyone to repeat: `ddetr-lite bench ...`.

Every figure is a ratio against a peer in the same run, all of them taking turns, since clocks of different runs and machines
cannot be compared.
"""
