"""The errors of the coupling; mistakes in a configuration are plain ``ValueError``."""


class Mistake(ValueError):
    """A ``ValueError`` that is certainly the user's to mend: a command ends with these words alone."""


class CoordinationError(RuntimeError):
    """Two models are not where they must be together: other data, another shape, another round."""


class PeerTimeoutError(RuntimeError):
    """A peer did not answer within ``--codistill-timeout`` seconds."""
