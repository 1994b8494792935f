//! Intel EPT.
