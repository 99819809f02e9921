//! Whether a history of one register is linearizable.
//!
//! It is if every operation can be given a moment between its call and its return such that, in the order of these moments, each read
//! sees the value before it and each swap replaces the value that it read. An operation that never returned may have such a moment
//! after its call, or none.
//!
//! The search is Lowe's just-in-time linearization (*Testing for linearizability*, 2017; as in Knossos): the history is gone through once,
//! with every state that the register may be in by then and the set of pending operations that have had their moment in it; an
//! operation is given its moment no sooner than some return asks for it. Reads are an exception, as they change nothing: a read that fits
//! the state has its moment at once, which never leaves fewer ways to go on. So the cost grows with how many *swaps* are pending at once and
//! could be next, which is one or two unless the history is wrong, and hardly with its length: a general tester that is made for histories of a
//! dozen operations does not get through the hundred thousands here.

use std::collections::{BTreeSet, HashSet};

use super::history::At;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It read this.
    Read(u64),
    /// It read the one and, with nothing in between, wrote the other.
    Swap(u64, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub step: Step,
    pub called: At,
    /// `None`: whether it took effect, or will, is not known.
    pub returned: Option<At>,
}

/// The register's value, and which of the pending operations have had their moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Possible {
    value: u64,
    done: BTreeSet<usize>,
}

impl Possible {
    /// The same after `operation` had its moment, if it can have it now.
    fn after(&self, operation: usize, step: Step) -> Option<Self> {
        let value = match step {
            Step::Read(value) if value == self.value => value,
            Step::Swap(from, to) if from == self.value => to,
            _ => return None,
        };
        let mut done = self.done.clone();
        done.insert(operation);
        Some(Self { value, done })
    }
}

/// The operations must be given in any order, their times decide. On failure: the operation by whose return no order was left.
pub fn linearizable(initial: u64, operations: &[Operation]) -> Result<(), usize> {
    // At equal times calls come first: then the two were concurrent, for all that is known.
    let mut events: Vec<(At, bool, usize)> = Vec::with_capacity(operations.len() * 2);
    for (index, operation) in operations.iter().enumerate() {
        events.push((operation.called, false, index));
        events.extend(operation.returned.map(|at| (at, true, index)));
    }
    events.sort_unstable();

    let mut pending: Vec<usize> = Vec::new();
    let mut possible = HashSet::from([Possible {
        value: initial,
        done: BTreeSet::new(),
    }]);
    for (_, is_return, index) in events {
        if !is_return {
            pending.push(index);
            if let Step::Read(value) = operations[index].step {
                possible = possible
                    .into_iter()
                    .map(|mut now| {
                        if now.value == value {
                            now.done.insert(index);
                        }
                        now
                    })
                    .collect();
            }
            continue;
        }
        let mut left = HashSet::new();
        let mut seen = possible.clone();
        let mut open: Vec<Possible> = possible.into_iter().collect();
        while let Some(mut now) = open.pop() {
            if now.done.remove(&index) {
                left.insert(now);
                continue;
            }
            for &swap in &pending {
                if now.done.contains(&swap) || matches!(operations[swap].step, Step::Read(_)) {
                    continue;
                }
                if let Some(mut next) = now.after(swap, operations[swap].step) {
                    for &read in &pending {
                        if operations[read].step == Step::Read(next.value) {
                            next.done.insert(read);
                        }
                    }
                    if seen.insert(next.clone()) {
                        open.push(next);
                    }
                }
            }
        }
        if left.is_empty() {
            return Err(index);
        }
        pending.retain(|&other| other != index);
        possible = left;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: u64, called: u64, returned: u64) -> Operation {
        Operation {
            step: Step::Read(value),
            called: At(called),
            returned: Some(At(returned)),
        }
    }

    fn swap(from: u64, to: u64, called: u64, returned: u64) -> Operation {
        Operation {
            step: Step::Swap(from, to),
            called: At(called),
            returned: Some(At(returned)),
        }
    }

    fn unknown(from: u64, to: u64, called: u64) -> Operation {
        Operation {
            step: Step::Swap(from, to),
            called: At(called),
            returned: None,
        }
    }

    #[test]
    fn one_after_the_other_is_linearizable() {
        let history = [swap(0, 1, 1, 2), read(1, 3, 4), swap(1, 2, 5, 6), read(2, 7, 8)];
        assert_eq!(linearizable(0, &history), Ok(()));
    }

    #[test]
    fn concurrent_operations_may_have_happened_in_any_order() {
        assert_eq!(
            linearizable(
                0,
                &[swap(1, 2, 1, 9), swap(0, 1, 1, 9), read(0, 1, 9), read(2, 2, 9)]
            ),
            Ok(())
        );
    }

    #[test]
    fn a_read_of_an_older_value_is_found() {
        assert_eq!(linearizable(0, &[swap(0, 1, 1, 2), read(0, 3, 4)]), Err(1));
    }

    #[test]
    fn a_read_of_a_value_that_nobody_wrote_is_found() {
        assert_eq!(linearizable(0, &[swap(0, 1, 1, 2), read(7, 1, 4)]), Err(1));
    }

    #[test]
    fn two_reads_that_go_back_in_time_are_found() {
        let history = [swap(0, 1, 1, 9), read(1, 2, 3), read(0, 4, 5)];
        assert_eq!(linearizable(0, &history), Err(2));
    }

    #[test]
    fn a_lost_update_is_found_also_when_both_were_concurrent() {
        assert!(linearizable(0, &[swap(0, 1, 1, 9), swap(0, 2, 1, 9)]).is_err());
    }

    #[test]
    fn what_never_returned_may_have_happened_late_or_not_at_all() {
        assert_eq!(linearizable(0, &[unknown(0, 1, 1), read(0, 5, 6)]), Ok(()));
        assert_eq!(
            linearizable(0, &[unknown(0, 1, 1), read(0, 5, 6), read(1, 7, 8)]),
            Ok(())
        );
        // But once, and not before it was called.
        let back = [unknown(0, 1, 1), read(1, 5, 6), read(0, 7, 8)];
        assert_eq!(linearizable(0, &back), Err(2));
        assert_eq!(linearizable(0, &[read(1, 1, 2), unknown(0, 1, 3)]), Err(0));
        let twice = [unknown(0, 1, 1), read(1, 2, 3), swap(1, 0, 4, 5), read(1, 6, 7)];
        assert_eq!(linearizable(0, &twice), Err(3));
    }

    #[test]
    fn a_read_that_was_let_in_early_is_not_asked_for_twice() {
        // The read fits before the first swap and after the second; whichever it was, the others still have a place.
        let history = [read(0, 1, 9), swap(0, 1, 2, 3), swap(1, 0, 4, 5), read(0, 6, 7)];
        assert_eq!(linearizable(0, &history), Ok(()));
    }

    /// Every order of up to five operations, tried one by one: the definition itself.
    fn by_definition(initial: u64, operations: &[Operation]) -> bool {
        fn go(value: u64, left: &[Operation]) -> bool {
            let must_precede = left.iter().filter_map(|operation| operation.returned).min();
            if must_precede.is_none() {
                return true;
            }
            (0..left.len()).any(|at| {
                let next = left[at];
                if must_precede.is_some_and(|returned| next.called > returned) {
                    return false;
                }
                let value = match next.step {
                    Step::Read(read) if read == value => value,
                    Step::Swap(from, to) if from == value => to,
                    _ => return false,
                };
                let rest: Vec<_> = left
                    .iter()
                    .copied()
                    .enumerate()
                    .filter(|(i, _)| *i != at)
                    .collect();
                go(
                    value,
                    &rest
                        .into_iter()
                        .map(|(_, operation)| operation)
                        .collect::<Vec<_>>(),
                )
            })
        }
        go(initial, operations)
    }

    #[test]
    fn it_agrees_with_the_definition_on_random_histories() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut verdicts = [0, 0];
        for _ in 0..20_000 {
            let history: Vec<Operation> = (0..rng.usize(1..6))
                .map(|_| {
                    let called = rng.u64(0..8);
                    let step = match rng.bool() {
                        true => Step::Read(rng.u64(0..3)),
                        false => Step::Swap(rng.u64(0..3), rng.u64(0..3)),
                    };
                    let returned = (rng.u8(0..5) > 0).then(|| At(called + rng.u64(0..6)));
                    Operation {
                        step,
                        called: At(called),
                        returned,
                    }
                })
                .collect();
            let expected = by_definition(0, &history);
            verdicts[usize::from(expected)] += 1;
            assert_eq!(linearizable(0, &history).is_ok(), expected, "{history:?}");
        }
        assert!(verdicts[0] > 1000 && verdicts[1] > 1000, "{verdicts:?}");
    }
}
