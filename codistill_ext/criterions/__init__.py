"""(fairseq) Criterions, imported by the tasks: fairseq imports only a plug-in's tasks and models by itself."""
