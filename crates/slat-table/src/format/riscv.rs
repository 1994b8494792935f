//! RISC-V G-stage.
