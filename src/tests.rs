//! What may go wrong between a client and its server, and that nothing is left behind by it.
//!
//! The other side is an embedded server. Between it and the client under test is a [`faulty`] backend, which loses,
//! delays and repeats calls as told. Futures are polled by hand and time is moved by hand: nothing here sleeps.

mod cancellation;
mod faulty;
mod peers;
mod rehoming;
mod truth;
