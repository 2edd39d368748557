"""`rtdmd variance`: noise and bias of the estimators of the reward's gradient, at one price."""
