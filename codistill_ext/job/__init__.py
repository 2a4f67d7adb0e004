"""What any trainer's job needs: whole checkpoints, resuming, logs, settings of single models, rendezvous.

May import ``groups``, the errors and the whole files of ``exchange/wire``; nothing of the method imports it.
"""
