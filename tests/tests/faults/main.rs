//! The real programs on a real kernel that fails them: system calls that are refused, deaths between any two of them,
//! power cuts, a disk that is full. Whatever was acknowledged restores, nothing else; the programs go on, or say what is
//! wrong.

mod full_disk;
mod points;
mod power_cuts;
mod scene;
mod syscalls;
mod verbs;
