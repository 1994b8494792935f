//! AMD nested paging.
