"""What any trainer's job needs: whole checkpoints, resuming, logs, settings of single models, rendezvous.

May import ``groups``, the errors, the files of ``exchange/wire`` and, to save its state in shards, the wrapper;
nothing of the method imports it.
"""
