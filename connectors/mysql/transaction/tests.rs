//! Whole logs of real servers, and short ones made here.

mod captured;
mod made;
mod story;
mod xa;
