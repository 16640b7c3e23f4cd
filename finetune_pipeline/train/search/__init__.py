"""The asset `training_search`: trainings with other settings, compared on the validation rows before the training.

In the order of the computation: space (what is tried), study (Optuna), trial (one training), job (the process),
placement (where it runs), report (the page), assets; choice is what the training takes from it.
"""
