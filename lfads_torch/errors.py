"""Errors meant for people: each says what was found, what is legal and what to change."""


class UserError(ValueError):
    """A mistake that the user can mend; the command line prints it without a traceback."""


class DataError(UserError):
    """A data file, or the numbers in it, cannot be used as they are."""


class ConfigError(UserError):
    """A configuration key, ``_target_`` or argument is not legal."""


class DivergedError(UserError):
    """Training reached a loss that is NaN or infinite."""
