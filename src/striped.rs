//! One lock that is too coarse, cut into stripes.
//!
//! What this file keeps: the same key is the same stripe, in every process, on every machine and in every version.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use crate::core::Handle;
use crate::error::{Error, ErrorKind};
use crate::lock::RwLock;
use crate::multi::Multi;
use crate::protocol::{Mode, Name};

/// The most stripes that a lock can have.
const MOST: usize = 65_536;

/// A read-write lock in stripes: a key maps to one of them, and keys on different stripes do not wait for each other.
///
/// A key's stripe is the XXH64 hash of its bytes, with seed 0, modulo the number of stripes. Stripe 37 of 100 of `stock` is the lock `stock#37/100`. So anybody
/// can compute who locks what; and **all must agree on the number**, as they must on the name: with another number these are other locks, which exclude
/// nobody here.
///
/// On a Redis Cluster the stripes are spread over the slots, and so over the servers. A name that begins with a tag in braces keeps all of them in one
/// slot: the stripes of `{stock}` are all on the server that has `{stock}`, which then takes up to 128 of them in one step
/// ([`read_all`](Self::read_all)), and alone bears their load.
///
/// Two keys may share a stripe. An owner re-enters it, as ever; who takes several keys one after the other, without an owner,
/// may wait for itself, and two that do so in different orders for each other: take them with [`write_for`](Self::write_for) or
/// [`read_for`](Self::read_for), which know what to do.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use relatch::Relatch;
///
/// let relatch = Relatch::embedded();
/// let stock = relatch.striped("stock", 100)?;
///
/// let item = stock.lock_for("sku-1").write().await?; // sells of other stripes go on
/// item.release().await?;
/// let basket = stock.write_for(["sku-1", "sku-2", "sku-3"]).await?; // all of them, in one order for everybody
/// basket.release().await?;
/// let count = stock.read_all().await?; // nothing is sold while it counts
/// assert_eq!(count.names().count(), 100);
/// # Ok::<(), relatch::Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Striped {
    client: Arc<Handle>,
    name: Name,
    stripes: usize,
    first: bool,
}

impl fmt::Debug for Striped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Striped")
            .field("name", &self.name)
            .field("stripes", &self.stripes)
            .finish_non_exhaustive()
    }
}

impl Striped {
    pub(crate) fn new(client: Arc<Handle>, name: &str, stripes: usize) -> Result<Self, Error> {
        let name = Name::new(name)?;
        if stripes == 0 || stripes > MOST {
            return Err(
                ErrorKind::Invalid(format!("a striped lock has 1 to {MOST} stripes, not {stripes}")).into(),
            );
        }
        // The longest of the names.
        Name::new(&stripe_name(&name, stripes - 1, stripes))?;
        Ok(Self {
            client,
            name,
            stripes,
            first: false,
        })
    }

    /// The name that it was made with.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// How many stripes there are.
    pub fn stripes(&self) -> usize {
        self.stripes
    }

    /// The same stripes, for who wants self-locking refused: see [`RwLock::non_reentrant`]. Mind that two keys may be on one stripe, which is
    /// refused just as the same key is.
    pub fn non_reentrant(mut self) -> Self {
        self.first = true;
        self
    }

    /// Which stripe a key is on: from 0.
    pub fn stripe_of<K: StripeKey + ?Sized>(&self, key: &K) -> usize {
        let count = self.stripes as u64;
        #[allow(clippy::cast_possible_truncation, reason = "it is less than `stripes`")]
        let stripe = (xxh64(&key.bytes(), 0) % count) as usize;
        stripe
    }

    /// The lock of a key.
    pub fn lock_for<K: StripeKey + ?Sized>(&self, key: &K) -> RwLock {
        self.lock_at(self.stripe_of(key))
    }

    /// The lock of a stripe; `None` for one that there is not.
    pub fn stripe(&self, stripe: usize) -> Option<RwLock> {
        (stripe < self.stripes).then(|| self.lock_at(stripe))
    }

    /// To read what these keys stand for: their stripes, each once, in an order that can't deadlock. See [`Multi`].
    pub fn read_for<K: StripeKey>(&self, keys: impl IntoIterator<Item = K>) -> Multi {
        self.many(self.stripes_of(keys), Mode::Read)
    }

    /// To change what these keys stand for: their stripes, each once, in an order that can't deadlock. See [`Multi`].
    pub fn write_for<K: StripeKey>(&self, keys: impl IntoIterator<Item = K>) -> Multi {
        self.many(self.stripes_of(keys), Mode::Write)
    }

    /// To read everything: all stripes, for totals. They are taken in one step where that can be (up to 128 stripes, in one slot), and if nobody
    /// writes; else one after the other, and it waits for those who write. See [`Multi`].
    pub fn read_all(&self) -> Multi {
        self.many((0..self.stripes).collect(), Mode::Read)
    }

    /// To change everything: all stripes, taken as by [`read_all`](Self::read_all).
    pub fn write_all(&self) -> Multi {
        self.many((0..self.stripes).collect(), Mode::Write)
    }

    fn stripes_of<K: StripeKey>(&self, keys: impl IntoIterator<Item = K>) -> Vec<usize> {
        keys.into_iter().map(|key| self.stripe_of(&key)).collect()
    }

    fn many(&self, stripes: Vec<usize>, mode: Mode) -> Multi {
        let locks = stripes.into_iter().map(|stripe| self.lock_at(stripe));
        Multi::of_locks(self.client.clone(), locks, mode)
    }

    fn lock_at(&self, stripe: usize) -> RwLock {
        RwLock {
            client: self.client.clone(),
            name: Name::known(stripe_name(&self.name, stripe, self.stripes)),
            first: self.first,
        }
    }
}

fn stripe_name(name: &Name, stripe: usize, stripes: usize) -> String {
    format!("{name}#{stripe}/{stripes}")
}

/// What can be a key of a [`Striped`] lock: text, bytes, and whole numbers. A number is the same key as its decimal text.
pub trait StripeKey {
    /// What is hashed.
    fn bytes(&self) -> Cow<'_, [u8]>;
}

macro_rules! bytes {
    ($($type:ty)*) => { $(
        impl StripeKey for $type {
            fn bytes(&self) -> Cow<'_, [u8]> {
                Cow::Borrowed(self.as_ref())
            }
        }
    )* };
}

macro_rules! numbers {
    ($($type:ty)*) => { $(
        impl StripeKey for $type {
            fn bytes(&self) -> Cow<'_, [u8]> {
                Cow::Owned(self.to_string().into_bytes())
            }
        }
    )* };
}

bytes! { str String [u8] Vec<u8> }
numbers! { u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize }

impl<const N: usize> StripeKey for [u8; N] {
    fn bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self)
    }
}

impl<K: StripeKey + ?Sized> StripeKey for &K {
    fn bytes(&self) -> Cow<'_, [u8]> {
        (**self).bytes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use super::*;
    use crate::Relatch;

    /// Written down once: another version, or another process, must find the same. The first is the published value of XXH64 for no bytes, 0xef46db3751d8e999.
    #[test]
    fn a_key_is_on_the_same_stripe_for_ever() {
        let striped = Relatch::embedded().striped("stock", 1 << 16).unwrap();
        assert_eq!(striped.stripe_of(""), 0xe999);
        assert_eq!(striped.stripe_of("abc"), 0x0999);
        let hundred = Relatch::embedded().striped("stock", 100).unwrap();
        assert_eq!(hundred.stripe_of(""), (0xef46_db37_51d8_e999_u64 % 100) as usize);
        assert_eq!(hundred.lock_for("").name(), "stock#21/100");
    }

    #[test]
    fn a_number_is_its_text() {
        let striped = Relatch::embedded().striped("stock", 1000).unwrap();
        for (number, text) in [(0, "0"), (-17, "-17"), (i64::MIN, "-9223372036854775808")] {
            assert_eq!(striped.stripe_of(&number), striped.stripe_of(text));
        }
        assert_eq!(striped.stripe_of(&7_u8), striped.stripe_of(&7_u128));
        assert_eq!(striped.stripe_of("7"), striped.stripe_of(&b"7".to_vec()));
        assert_eq!(striped.stripe_of(b"7"), striped.stripe_of(&String::from("7")));
    }

    #[test]
    fn keys_spread_over_all_stripes() {
        let striped = Relatch::embedded().striped("stock", 100).unwrap();
        let mut keys = [0_u32; 100];
        for item in 0..2_000 {
            keys[striped.stripe_of(&item)] += 1;
        }
        // 20 on average; a fair die strays from that by some 4.5.
        assert!(keys.iter().all(|&n| (4..=40).contains(&n)), "{keys:?}");
    }

    #[test]
    fn a_number_of_stripes_or_a_name_that_cannot_be_is_an_error() {
        let relatch = Relatch::embedded();
        for (name, stripes) in [("", 1), ("x", 0), ("x", MOST + 1), (&*"x".repeat(508), 100)] {
            let error = relatch.striped(name, stripes).unwrap_err();
            assert!(error.is_invalid(), "{error}");
        }
        assert!(relatch.striped(&"x".repeat(505), 100).is_ok());
        assert!(relatch.striped("x", MOST).is_ok());
        assert!(relatch.striped("x", 2).unwrap().stripe(2).is_none());
    }
}
