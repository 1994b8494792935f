//! Armv7 LPAE stage 2.
