"""The exceptions of this package: what we raise, and what the user can mend."""


class RtdmdError(Exception):
    """Anything that this package finds wrong while it runs (a non-finite tensor, a damaged file)."""


class NonFiniteError(RtdmdError, FloatingPointError):
    """A value that is not finite; a training stage adds the step and the last good checkpoint."""


class UserError(RtdmdError):
    """Something the user can mend. The message is one line that names the key, file or command to change.

    The command line prints it without a traceback and ends with exit code 2.
    """
