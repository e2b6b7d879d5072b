//! One after the other, by id; who comes or goes does not begin the round anew.

use super::Able;
use crate::id::NodeId;

pub(super) fn pick(able: &[Able], last: Option<NodeId>) -> Option<usize> {
    let after = last.and_then(|last| able.iter().position(|w| w.id > last));
    (!able.is_empty()).then(|| after.unwrap_or(0))
}
