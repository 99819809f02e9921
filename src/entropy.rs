//! Randomness. The only caller of the operating system's, so that a simulation can repeat a run.

use uuid::Uuid;

/// A random UUID.
pub(crate) fn uuid() -> Uuid {
    #[cfg(feature = "cli")]
    if let Some(bytes) = seeded::bytes() {
        return uuid::Builder::from_random_bytes(bytes).into_uuid();
    }
    Uuid::new_v4()
}

/// 64 random bits.
pub(crate) fn bits() -> u64 {
    // Some bits of a UUID say that it is one.
    uuid().as_u64_pair().1 ^ uuid().as_u64_pair().0.rotate_left(32)
}

/// On this thread, for as long as a [`Seeded`] lives, randomness comes from a seed.
#[cfg(feature = "cli")]
pub(crate) use seeded::Seeded;

#[cfg(feature = "cli")]
mod seeded {
    use std::cell::RefCell;

    thread_local! {
        static SOURCE: RefCell<Option<fastrand::Rng>> = const { RefCell::new(None) };
    }

    pub(crate) struct Seeded(());

    impl Seeded {
        pub(crate) fn new(seed: u64) -> Self {
            SOURCE.set(Some(fastrand::Rng::with_seed(seed)));
            Self(())
        }
    }

    impl Drop for Seeded {
        fn drop(&mut self) {
            SOURCE.set(None);
        }
    }

    pub(super) fn bytes() -> Option<[u8; 16]> {
        SOURCE.with_borrow_mut(|source| Some(source.as_mut()?.u128(..).to_le_bytes()))
    }
}
