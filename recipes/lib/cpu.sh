# Sourced by the lib.sh of recipes that train on the cores of one machine.
# Several processes share them; and glibc, which gives freed memory back to the system, is to keep it: a tenth of the
# time of an update (docs/benchmarks.md), and not a bit of a result.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-4000000000} MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-4000000000}
