//! POWER9 radix tables, partition-scoped.
