//! What must survive a crash on this machine.
