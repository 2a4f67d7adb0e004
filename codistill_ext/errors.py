"""The errors of the coupling; mistakes in a configuration are plain ``ValueError``."""


class CoordinationError(RuntimeError):
    """Two models are not where they must be together: other data, another shape, another round."""


class PeerTimeoutError(RuntimeError):
    """A peer did not answer within ``--codistill-timeout`` seconds."""
