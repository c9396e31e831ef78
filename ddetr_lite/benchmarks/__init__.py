"""What this project claims, for anyone to repeat: `ddetr-lite bench ...`.

Speed: ratios within one run, since clocks of different runs and machines cannot be compared; peers take turns in `msda` and
`step`, while `input` times loading without a pause, in which batches would be made for later. Accuracy (`studies`): models that
are trained and compared by one method.
"""
