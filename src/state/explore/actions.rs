//! A scope, and what may happen next within it.

use super::ghost::{Action, Past, Standing, World, owner_id};
use crate::protocol::{Mode, OwnerId};

/// What is explored. Everything within is, up to `depth` actions; nothing else is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    pub(super) name: &'static str,
    pub(super) owners: u8,
    pub(super) clients: u8,
    /// At most so many requests that wait, hold, or may still be heard of by a late copy.
    pub(super) requests: usize,
    /// The depth in an ordinary run.
    pub(super) slice: u32,
    /// The depth of the whole.
    pub(super) depth: u32,
    pub(super) modes: &'static [Mode],
    /// Requests that do not wait.
    pub(super) tries: bool,
    /// An owner asks by every client; else each by one of its own.
    pub(super) roam: bool,
    pub(super) upgrades: bool,
    pub(super) downgrades: bool,
    /// Clients become deaf, and hear again.
    pub(super) deafness: bool,
    /// Time passes: to just before the next end of a lease, a claim or a mark, and to it.
    pub(super) time: bool,
    /// Late copies of everything, withdrawals that overtake what they withdraw, and polls one by one.
    pub(super) copies: bool,
    pub(super) renewals: bool,
    pub(super) revocation: bool,
    /// The server loses its data, once.
    pub(super) loss: bool,
}

pub(super) fn actions(world: &World, scope: &Scope) -> Vec<Action> {
    let mut to = Vec::with_capacity(64);
    if world.pasts.len() < scope.requests {
        asks(world, scope, &mut to);
    }
    for (at, p) in world.pasts.iter().enumerate() {
        of_one(world, scope, at as u8, p, &mut to);
    }
    for client in 0..scope.clients {
        let waiting = world
            .pasts
            .iter()
            .filter(|p| p.is_waiting() && p.id.client.0 == u64::from(client) + 1)
            .count();
        if waiting > 0 && (!scope.copies || waiting > 1) {
            to.push(Action::PollAll { client });
        }
        if scope.deafness {
            to.push(Action::Toggle { client });
        }
    }
    if scope.revocation {
        for owner in (0..scope.owners).filter(|owner| world.held(owner_id(*owner)).is_some()) {
            to.push(Action::Revoke { owner: Some(owner) });
        }
        if world.pasts.iter().any(Past::is_held) {
            to.push(Action::Revoke { owner: None });
        }
    }
    if world.stale {
        to.push(Action::Look);
    }
    if scope.time {
        let ends = world.pasts.iter().filter_map(|p| match p.standing {
            Standing::Held => Some(p.deadline_ms),
            Standing::Waiting => Some(p.sign_ms),
            Standing::Over(_) => Some(p.quiet_ms),
            _ => None,
        });
        if let Some(next) = ends.filter(|end| *end > world.now_ms).min() {
            let ms = (next - world.now_ms) as u8;
            to.push(Action::Pass { ms });
            if ms > 1 {
                to.push(Action::Pass { ms: ms - 1 });
            }
        }
    }
    if scope.loss && !world.lost {
        to.push(Action::Lose);
    }
    to
}

fn asks(world: &World, scope: &Scope, to: &mut Vec<Action>) {
    let used = |owner: &u8| world.pasts.iter().any(|p| p.owner == owner_id(*owner));
    // One that nothing is known of is like another.
    let fresh = (0..scope.owners).find(|owner| !used(owner));
    for owner in (0..scope.owners).filter(used).chain(fresh) {
        let own = own_client(world, owner_id(owner));
        for client in (0..scope.clients).filter(|client| scope.roam || own.is_none_or(|own| own == *client)) {
            for mode in scope.modes.iter().copied() {
                to.push(Action::Ask {
                    owner,
                    client,
                    mode,
                    wait: true,
                });
                if scope.tries {
                    to.push(Action::Ask {
                        owner,
                        client,
                        mode,
                        wait: false,
                    });
                }
                if scope.copies {
                    to.push(Action::WithdrawFirst { owner, client, mode });
                }
            }
        }
    }
    if !scope.upgrades {
        return;
    }
    for (at, p) in world.pasts.iter().enumerate() {
        let under_way = world.pasts.iter().any(|w| {
            w.upgrade_of == Some(p.id) && !w.withdraw_sent && !matches!(w.standing, Standing::Over(_))
        });
        if p.is_held() && p.mode == Mode::Upgradable && p.release_sent.is_none() && !under_way {
            to.push(Action::Upgrade {
                of: at as u8,
                wait: true,
            });
            if scope.tries {
                to.push(Action::Upgrade {
                    of: at as u8,
                    wait: false,
                });
            }
        }
    }
}

fn own_client(world: &World, owner: OwnerId) -> Option<u8> {
    let p = world.pasts.iter().find(|p| p.owner == owner)?;
    Some(p.id.client.0 as u8 - 1)
}

fn of_one(world: &World, scope: &Scope, at: u8, p: &Past, to: &mut Vec<Action>) {
    let over = matches!(p.standing, Standing::Over(_));
    let replaced = matches!(p.standing, Standing::Replaced(_));
    // A request whose grant was not heard of may be withdrawn; one that was heard of, released. Never both.
    let may_withdraw = !over
        && !replaced
        && p.release_sent.is_none()
        && p.downgrade_sent.is_none()
        && !p.renewed
        && !p.upgrading;
    if p.standing == Standing::Passed {
        to.push(Action::AskAgain { at, place: true });
    }
    if scope.copies && p.wait && !(replaced && p.quiet_ms <= world.now_ms) {
        to.push(Action::AskAgain { at, place: false });
    }
    if may_withdraw || (scope.copies && p.withdraw_sent) {
        to.push(Action::Withdraw { at, undo: false });
        if p.upgrade_of.is_some() {
            to.push(Action::Withdraw { at, undo: true });
        }
    }
    match p.release_sent {
        Some(mark) if scope.copies => {
            to.push(Action::Release {
                at,
                again: true,
                mark,
            });
            to.push(Action::Release {
                at,
                again: false,
                mark,
            });
        }
        None if !p.withdraw_sent && (p.is_held() || (replaced && p.upgrading)) => {
            // What has been, or may be, sent more than once leaves a mark.
            if scope.copies || p.upgrading {
                to.push(Action::Release {
                    at,
                    again: false,
                    mark: true,
                });
            }
            if !p.upgrading {
                to.push(Action::Release {
                    at,
                    again: false,
                    mark: false,
                });
            }
        }
        _ => {}
    }
    if scope.downgrades {
        for mode in [Mode::Upgradable, Mode::Read] {
            let given_back = world
                .pasts
                .iter()
                .all(|w| w.upgrade_of != Some(p.id) || w.withdraw_sent);
            let first = (p.is_held() || replaced) && mode < p.mode && p.release_sent.is_none() && given_back;
            let copy = scope.copies && p.downgrade_sent == Some(mode);
            if (first && !p.withdraw_sent) || copy {
                to.push(Action::Downgrade { at, to: mode });
            }
        }
    }
    if scope.renewals && p.is_held() {
        to.push(Action::Renew { at, fixed: false });
        to.push(Action::Renew { at, fixed: true });
    }
    if scope.copies && p.is_waiting() {
        to.push(Action::Poll { at });
    }
}
