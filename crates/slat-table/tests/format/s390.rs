//! s390 DAT tables.
