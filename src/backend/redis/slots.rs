//! A cluster's slots: which one a key is in, who serves it, and what may be said in it.
//!
//! A cluster divides all keys into 16,384 slots, by a checksum of a key's hash tag, and says of each slot which master serves it. Nodes
//! learn of changes by gossip, so two of them may say different things for a moment. Each claim of a master has an *epoch*: where two
//! claim a slot, the later epoch is right, for the cluster itself decides so. [`View`] is what one node said, [`Claim`] one line of it.
//!
//! No connection here, and no policy.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::LazyLock;

use ::redis::Value;
use crc::{CRC_16_XMODEM, Crc};

use crate::backend::redis::scripts;
use crate::protocol::{ClientId, Name};

/// How many there are.
pub(super) const SLOTS: u16 = 16_384;

static CRC: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// What a key with this hash tag, or with none and this whole text, is in.
fn slot_of_tag(tag: &str) -> u16 {
    CRC.checksum(tag.as_bytes()) % SLOTS
}

/// The slot of all keys of a name.
pub(super) fn slot_of(name: &Name) -> u16 {
    slot_of_tag(&scripts::tag_of(name))
}

/// The slot of a key that has no braces in it.
pub(super) fn slot_of_plain(key: &str) -> u16 {
    slot_of_tag(key)
}

/// For each slot the smallest number whose digits are in it: every client finds the same.
static TAGS: LazyLock<Vec<u32>> = LazyLock::new(|| {
    let mut tags = vec![u32::MAX; usize::from(SLOTS)];
    let mut missing = tags.len();
    let mut digits = String::new();
    // 109,757 is the last that is needed.
    for number in 0.. {
        digits.clear();
        let _ = write!(digits, "{number}");
        let tag = &mut tags[usize::from(slot_of_tag(&digits))];
        if *tag == u32::MAX {
            *tag = number;
            missing -= 1;
            if missing == 0 {
                break;
            }
        }
    }
    tags
});

/// What the channels of a slot begin with; a client's id follows.
pub(super) fn channels(slot: u16) -> String {
    scripts::channels_of(TAGS[usize::from(slot % SLOTS)])
}

/// The channel on which a client hears of the names of a slot.
pub(super) fn channel(slot: u16, client: ClientId) -> String {
    let mut channel = channels(slot);
    channel.push_str(&client.wire());
    channel
}

/// The slot that a channel of ours belongs to.
pub(super) fn slot_of_channel(channel: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(channel).ok()?;
    let (_, rest) = text.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    Some(slot_of_tag(tag))
}

/// Where a node is: host and port.
pub(super) type Place = (String, u16);

/// A master claims these slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) master: Place,
    /// When it came to have them, as the cluster counts; 0 where the node did not say.
    pub(super) epoch: u64,
}

/// What one node says of the whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    pub(super) claims: Vec<Claim>,
    /// All nodes that it names, replicas too: whoever may be asked next.
    pub(super) nodes: Vec<Place>,
    /// Who said so: its id. `None` where it did not tell.
    pub(super) by: Option<String>,
    /// The slots whose keys it is moving away itself, and where to.
    pub(super) moving: Vec<(u16, Place)>,
}

impl View {
    /// From the replies to `CLUSTER SLOTS` and `CLUSTER NODES`, as the node at `asked` gave them. The first tells who serves what, and
    /// by which address a client should reach it; the second, where it is to be had, the epochs. `None`: that is no such reply.
    pub(super) fn read(slots: &Value, nodes: &Value, asked: &Place) -> Option<Self> {
        let Value::Array(ranges) = slots else { return None };
        let nodes = text(nodes);
        let lines = Line::read_all(&nodes);
        let myself = lines.iter().find(|line| line.myself);
        // Those that the first reply has, by the address that it has of them.
        let mut named: Vec<(&[u8], Place)> = Vec::new();
        let mut view = View {
            by: myself.map(|line| line.id.to_owned()),
            ..View::default()
        };
        for range in ranges {
            let Value::Array(parts) = range else { return None };
            let [first, last, nodes @ ..] = parts.as_slice() else {
                return None;
            };
            let (first, last) = (slot(first)?, slot(last)?);
            if first > last {
                return None;
            }
            for (at, node) in nodes.iter().enumerate() {
                let Some((place, id)) = read_node(node, asked) else {
                    // A node whose address nobody knows yet. As a master it can't be reached, so its slots are nobody's.
                    continue;
                };
                if at == 0 {
                    view.claims.push(Claim {
                        first,
                        last,
                        master: place.clone(),
                        epoch: lines
                            .iter()
                            .find(|line| line.id.as_bytes() == id)
                            .map_or(0, |line| line.epoch),
                    });
                }
                if !view.nodes.contains(&place) {
                    view.nodes.push(place.clone());
                    named.push((id, place));
                }
            }
        }
        for (slot, to) in myself.into_iter().flat_map(|line| &line.moving) {
            let named = named.iter().find(|(id, _)| *id == to.as_bytes());
            let listed = lines.iter().find(|line| line.id == *to);
            let place = named.map(|(_, place)| place);
            let place = place.or(listed.and_then(|line| line.place.as_ref()));
            view.moving.extend(place.map(|place| (*slot, place.clone())));
        }
        Some(view)
    }
}

fn slot(value: &Value) -> Option<u16> {
    match value {
        Value::Int(slot) => u16::try_from(*slot).ok().filter(|slot| *slot < SLOTS),
        _ => None,
    }
}

/// Its address, and its id.
fn read_node<'a>(value: &'a Value, asked: &Place) -> Option<(Place, &'a [u8])> {
    let Value::Array(parts) = value else { return None };
    let host = match parts.first()? {
        // It is where it was asked.
        Value::Nil => asked.0.clone(),
        Value::BulkString(host) => match std::str::from_utf8(host).ok()? {
            "" => asked.0.clone(),
            "?" => return None,
            host => host.to_owned(),
        },
        _ => return None,
    };
    let Value::Int(port) = parts.get(1)? else {
        return None;
    };
    let port = u16::try_from(*port).ok().filter(|port| *port > 0)?;
    let id = match parts.get(2) {
        Some(Value::BulkString(id)) => id.as_slice(),
        _ => &[],
    };
    Some(((host, port), id))
}

/// What `CLUSTER NODES` says of one node.
struct Line<'a> {
    id: &'a str,
    place: Option<Place>,
    /// It is the one that was asked.
    myself: bool,
    epoch: u64,
    /// Its slots that are being moved away, and the ids of the nodes to which. It says so of itself only.
    moving: Vec<(u16, &'a str)>,
}

impl<'a> Line<'a> {
    fn read_all(text: &'a str) -> Vec<Self> {
        text.lines().filter_map(Self::read).collect()
    }

    fn read(line: &'a str) -> Option<Self> {
        // <id> <host>:<port>@<bus>,<name> <flags> <master> <ping> <pong> <epoch> <link> <slots…>
        let words: Vec<&str> = line.split(' ').collect();
        let [id, address, flags, _, _, _, epoch, ..] = words.as_slice() else {
            return None;
        };
        let address = address.split('@').next().unwrap_or_default();
        let place = address.rsplit_once(':').and_then(|(host, port)| {
            let port = port.parse().ok().filter(|port| *port > 0)?;
            (!host.is_empty()).then(|| (host.to_owned(), port))
        });
        // [93->-<id>] leaves, [77-<-<id>] comes.
        let moving = words.iter().skip(8).filter_map(|word| {
            let (slot, to) = word.strip_prefix('[')?.strip_suffix(']')?.split_once("->-")?;
            Some((slot.parse().ok().filter(|slot| *slot < SLOTS)?, to))
        });
        Some(Self {
            id,
            place,
            myself: flags.split(',').any(|flag| flag == "myself"),
            epoch: epoch.parse().ok()?,
            moving: moving.collect(),
        })
    }
}

/// A line for each node: `<id> <address> <flags> <master> <ping> <pong> <epoch> <link> <slots…>`.
fn text(nodes: &Value) -> Cow<'_, str> {
    match nodes {
        Value::BulkString(text) => String::from_utf8_lossy(text),
        Value::VerbatimString { text, .. } => text.into(),
        _ => "".into(),
    }
}

/// The id of the node that answered so to `CLUSTER NODES`. It stays the same for as long as the node lives, by whichever address it is reached.
pub(super) fn myself(nodes: &Value) -> Option<String> {
    text(nodes).lines().find_map(|line| {
        let mut words = line.split(' ');
        let (id, flags) = (words.next()?, words.nth(1)?);
        flags
            .split(',')
            .any(|flag| flag == "myself")
            .then(|| id.to_owned())
    })
}

/// `MOVED <slot> <host>:<port>` and `ASK …`: the slot and the place. The host may be missing: then it is where the answer came from.
pub(super) fn redirection(details: &str, asked: &Place) -> Option<(u16, Place)> {
    let (slot, place) = details.trim().split_once(' ')?;
    let slot = slot.parse().ok().filter(|slot| *slot < SLOTS)?;
    // An IPv6 address has colons of its own.
    let (host, port) = place.trim().rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let host = match host.trim_start_matches('[').trim_end_matches(']') {
        "" => asked.0.clone(),
        "?" => return None,
        host if host.chars().any(|c| c.is_whitespace() || c.is_control()) => return None,
        host => host.to_owned(),
    };
    Some((slot, (host, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn here() -> Place {
        ("10.0.0.1".into(), 7000)
    }

    fn node(host: Value, port: i64, id: &str) -> Value {
        Value::Array(vec![host, Value::Int(port), bulk(id), Value::Array(vec![])])
    }

    #[test]
    fn slots_are_as_the_specification_has_them() {
        // Its own example of the checksum, 0x31C3, and what a server says to CLUSTER KEYSLOT.
        assert_eq!(slot_of_plain("123456789"), 0x31C3 % SLOTS);
        assert_eq!(slot_of_plain("a"), 15_495);
        assert_eq!(slot_of_plain("b"), 3_300);
        assert_eq!(slot_of(&Name::new("a").unwrap()), 15_495);
        assert_eq!(slot_of(&Name::new("{a}b").unwrap()), 15_495, "a name with a tag");
        assert_eq!(
            slot_of(&Name::new("}{").unwrap()),
            slot_of_plain("%7D%7B"),
            "a name's own braces are no tag"
        );
    }

    #[test]
    fn every_slot_has_channels_of_its_own() {
        for slot in 0..SLOTS {
            let channel = channel(slot, ClientId(7));
            assert_eq!(slot_of_channel(channel.as_bytes()), Some(slot), "{channel}");
        }
        assert_eq!(TAGS.iter().max(), Some(&109_757));
        assert_eq!(slot_of_channel(b"relatch:1:client:x"), None);
        assert_eq!(slot_of_channel(&[0xff, b'{', b'}']), None);
    }

    #[test]
    fn a_view_is_read() {
        let slots = Value::Array(vec![
            Value::Array(vec![
                Value::Int(0),
                Value::Int(99),
                node(bulk("10.0.0.2"), 7001, "aa"),
                node(bulk(""), 7002, "bb"),
            ]),
            Value::Array(vec![
                Value::Int(100),
                Value::Int(100),
                node(Value::Nil, 7000, "cc"),
            ]),
            Value::Array(vec![
                Value::Int(101),
                Value::Int(16_383),
                node(bulk("?"), 7003, "dd"),
            ]),
        ]);
        let nodes = bulk(
            "aa 10.0.0.2:7001@17001,host master - 0 1 12 connected 0-99\n\
             bb :7002@17002 slave aa 0 1 12 connected\n\
             cc :7000@17000 myself,master - 0 0 3 connected 100-101 [100->-aa] [101->-ee] [7-<-aa]\n\
             ee 10.0.0.9:7009@17009 master - 0 0 4 connected\n\n",
        );
        let view = View::read(&slots, &nodes, &here()).unwrap();
        let claim = |first, last, host: &str, port, epoch| Claim {
            first,
            last,
            master: (host.to_owned(), port),
            epoch,
        };
        assert_eq!(
            view.claims,
            [
                claim(0, 99, "10.0.0.2", 7001, 12),
                claim(100, 100, "10.0.0.1", 7000, 3)
            ],
            "what nobody can reach is nobody's"
        );
        assert_eq!(view.nodes.len(), 3);
        assert_eq!(view.by.as_deref(), Some("cc"));
        assert_eq!(
            view.moving,
            [
                (100, ("10.0.0.2".to_owned(), 7001)),
                (101, ("10.0.0.9".to_owned(), 7009))
            ],
            "also to one that serves nothing yet, and not what comes"
        );
        let forbidden = View::read(&slots, &Value::Nil, &here()).unwrap();
        assert_eq!(forbidden.claims[0].epoch, 0);
        assert_eq!(forbidden.by, None);
    }

    #[test]
    fn what_is_no_view_is_refused() {
        let range = |first, last| {
            Value::Array(vec![Value::Array(vec![
                Value::Int(first),
                Value::Int(last),
                node(bulk("a"), 1, "a"),
            ])])
        };
        for slots in [
            Value::Okay,
            Value::Nil,
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![Value::Array(vec![])]),
            range(0, 16_384),
            range(-1, 5),
            range(5, 4),
        ] {
            assert_eq!(View::read(&slots, &Value::Nil, &here()), None, "{slots:?}");
        }
        assert!(View::read(&range(5, 5), &Value::Nil, &here()).is_some());
    }

    #[test]
    fn redirections_are_read() {
        let to = |text: &str| redirection(text, &here());
        let place = |host: &str, port| Some((3999, (host.to_owned(), port)));
        assert_eq!(to("3999 127.0.0.1:6381"), place("127.0.0.1", 6381));
        assert_eq!(to("3999 :6381"), place("10.0.0.1", 6381));
        assert_eq!(to("3999 fe80::1:6381"), place("fe80::1", 6381));
        assert_eq!(to("3999 [fe80::1]:6381"), place("fe80::1", 6381));
        assert_eq!(to("3999 node-1.cache:6381"), place("node-1.cache", 6381));
        for text in [
            "",
            "3999",
            "3999 x",
            "3999 x:",
            "3999 x:0",
            "3999 x:70000",
            "16384 x:1",
            "-1 x:1",
            "3999 ?:1",
            "1 a b:1",
        ] {
            assert_eq!(to(text), None, "{text:?}");
        }
    }
}
