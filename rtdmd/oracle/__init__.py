"""The analytic oracle: a 2-D world in which teacher, posterior and target are known in closed form.

`rtdmd verify` and the tests measure here whether the functions of `rtdmd.flow` and `rtdmd.train`, as the training calls
them, do what the paper states. Statements T1 to T8 are listed in `statements.py`.
"""
