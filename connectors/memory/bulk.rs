//! How the source in memory is read in bulk by a pipeline that is far behind, as PostgreSQL's is:
//! from a copy of the slot, in calls of bounded size. What is acknowledged reaches the slot only
//! between two calls, and the slot itself is free until the stream takes it at the end.

use super::server::State;
use crate::error::{Code, Error, Result};

/// How much log a call takes, in multiples of what a pipeline must be behind.
const CALL: u64 = 2;
/// How many times further behind a pipeline that streams must be.
const PATIENCE: u64 = 2;

/// How a stream reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As the log grows.
    Streaming,
    /// In bulk; the call ends here.
    Bulk { upto: u64 },
}

/// What a stream must do before it can read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Change to bulk reads.
    Begin,
    /// Let go of what is durable, and begin the next call.
    Call,
    /// Change to streaming.
    Over,
}

impl Way {
    /// What is to be done at this place of a log that ends at `head`.
    pub(super) fn turn(self, above: Option<u64>, at: u64, head: u64) -> Option<Turn> {
        let behind = head.saturating_sub(at);
        match (self, above) {
            (Way::Streaming, Some(above)) if behind >= PATIENCE * above => Some(Turn::Begin),
            (Way::Streaming, _) => None,
            (Way::Bulk { upto }, _) if at < upto => None,
            (Way::Bulk { .. }, Some(above)) if behind >= above => Some(Turn::Call),
            (Way::Bulk { .. }, _) => Some(Turn::Over),
        }
    }
}

impl State {
    /// Takes a turn for the stream of this number.
    pub(super) fn take(
        &mut self,
        turn: Turn,
        (number, above): (u64, u64),
        (at, durable): (u64, u64),
    ) -> Result<Way> {
        let head = self.head;
        let slot =
            self.slot.as_mut().ok_or_else(|| Error::stop(Code::SlotMissing, "the slot is gone"))?;
        match turn {
            Turn::Begin => {
                slot.reader = slot.reader.filter(|reader| *reader != number);
                slot.copies.insert(number);
                Ok(Way::Bulk { upto: at })
            }
            Turn::Call => {
                if slot.reader.is_none() {
                    slot.acknowledged = slot.acknowledged.max(durable);
                }
                Ok(Way::Bulk { upto: head.min(at + CALL * above) })
            }
            Turn::Over if slot.reader.is_some() => {
                Err(Error::transient(Code::SlotInUse, "another stream reads the slot"))
            }
            Turn::Over => {
                slot.copies.remove(&number);
                slot.reader = Some(number);
                Ok(Way::Streaming)
            }
        }
    }
}
