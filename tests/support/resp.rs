//! RESP, the protocol that Redis speaks, versions 2 and 3: a parser and a blocking client.
//!
//! Written for the tests alone, so that they look at the server with other eyes than the crate does.
//! Text is decoded lossily: what the tests look at is text.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// What a server said. RESP3's further types fold into the nearest of RESP2's, except for pushes.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// `+OK`; also RESP3's doubles, booleans and big numbers, as they were written.
    Simple(String),
    /// `-ERR …`, without the dash.
    Error(String),
    Integer(i64),
    Bulk(String),
    Nil,
    /// Also RESP3's sets, and its maps: key, value, key, value.
    Array(Vec<Reply>),
    /// RESP3's message that answers no request.
    Push(Vec<Reply>),
}

impl Reply {
    /// As a person reads it: an array one element a line, nil as nothing.
    pub fn text(&self) -> String {
        match self {
            Self::Simple(text) | Self::Error(text) | Self::Bulk(text) => text.clone(),
            Self::Integer(number) => number.to_string(),
            Self::Nil => String::new(),
            Self::Array(items) | Self::Push(items) => {
                items.iter().map(Self::text).collect::<Vec<_>>().join("\n")
            }
        }
    }

    /// The elements of an array; of anything else, none.
    pub fn items(&self) -> &[Reply] {
        match self {
            Self::Array(items) | Self::Push(items) => items,
            _ => &[],
        }
    }

    pub fn integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            _ => None,
        }
    }

    pub fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }

    /// Whether this answers no request: a RESP3 push, or what a RESP2 connection hears instead.
    pub fn is_push(&self) -> bool {
        match self {
            Self::Push(_) => true,
            Self::Array(items) => matches!(items.first(), Some(Self::Bulk(kind)) if matches!(
                kind.as_str(),
                "message" | "pmessage" | "smessage"
                    | "subscribe" | "psubscribe" | "ssubscribe"
                    | "unsubscribe" | "punsubscribe" | "sunsubscribe"
            )),
            _ => false,
        }
    }
}

/// These bytes are not RESP.
#[derive(Debug)]
pub struct Nonsense;

/// One value and the number of bytes that it took, or `None` when more bytes must come first.
pub fn parse(bytes: &[u8]) -> Result<Option<(Reply, usize)>, Nonsense> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return match bytes.first() {
            Some(kind) if !b"+-:$*_,#(!=%~>|".contains(kind) => Err(Nonsense),
            _ => Ok(None),
        };
    };
    let line = String::from_utf8_lossy(&bytes[1.min(end)..end]).into_owned();
    let after = end + 2;
    let number = || line.parse::<i64>().map_err(|_| Nonsense);
    // A length or count beyond what Redis itself allows is no length.
    let size = || number().and_then(|size| if size <= 1 << 30 { Ok(size) } else { Err(Nonsense) });
    let all = |count: i64| many(bytes, after, count);

    let reply = match bytes[0] {
        b'+' | b',' | b'#' | b'(' => Reply::Simple(line),
        b'-' => Reply::Error(line),
        b':' => Reply::Integer(number()?),
        b'_' => Reply::Nil,
        b'$' | b'=' | b'!' => {
            // A negative length is RESP2's nil.
            let Ok(length) = usize::try_from(size()?) else {
                return Ok(Some((Reply::Nil, after)));
            };
            let Some(body) = bytes.get(after..after + length + 2) else {
                return Ok(None);
            };
            let text = String::from_utf8_lossy(&body[..length]).into_owned();
            let reply = match bytes[0] {
                b'!' => Reply::Error(text),
                // A verbatim string starts with three letters and a colon that say what it is.
                b'=' => Reply::Bulk(text.get(4..).unwrap_or_default().to_owned()),
                _ => Reply::Bulk(text),
            };
            return Ok(Some((reply, after + length + 2)));
        }
        kind @ (b'*' | b'~' | b'>' | b'%') => {
            let count = size()?;
            if count < 0 {
                return Ok(Some((Reply::Nil, after)));
            }
            let count = if kind == b'%' { count * 2 } else { count };
            return Ok(all(count)?.map(|(items, taken)| match kind {
                b'>' => (Reply::Push(items), taken),
                _ => (Reply::Array(items), taken),
            }));
        }
        // Attributes come before the value that they describe, and are part of it here.
        b'|' => {
            let Some((_, taken)) = all(size()? * 2)? else {
                return Ok(None);
            };
            return Ok(parse(&bytes[taken..])?.map(|(reply, rest)| (reply, taken + rest)));
        }
        _ => return Err(Nonsense),
    };
    Ok(Some((reply, after)))
}

fn many(bytes: &[u8], from: usize, count: i64) -> Result<Option<(Vec<Reply>, usize)>, Nonsense> {
    let mut items = Vec::new();
    let mut at = from;
    for _ in 0..count {
        let Some((item, taken)) = parse(&bytes[at..])? else {
            return Ok(None);
        };
        items.push(item);
        at += taken;
    }
    Ok(Some((items, at)))
}

/// What a stream turned out to hold.
#[derive(Debug)]
pub enum Piece {
    /// One whole value, and its bytes as they came.
    Value(Reply, Vec<u8>),
    /// Not RESP. From here on the stream is handed through as it comes.
    Raw(Vec<u8>),
}

/// Cuts a stream of bytes into RESP values.
#[derive(Default)]
pub struct Framer {
    pending: Vec<u8>,
    nonsense: bool,
}

impl Framer {
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Piece> {
        if self.nonsense {
            return vec![Piece::Raw(bytes.to_vec())];
        }
        self.pending.extend_from_slice(bytes);
        let mut pieces = Vec::new();
        let mut at = 0;
        loop {
            let rest = &self.pending[at..];
            match parse(rest) {
                Ok(Some((reply, taken))) => {
                    pieces.push(Piece::Value(reply, rest[..taken].to_vec()));
                    at += taken;
                }
                Ok(None) => break,
                Err(Nonsense) => {
                    self.nonsense = true;
                    pieces.push(Piece::Raw(rest.to_vec()));
                    at = self.pending.len();
                    break;
                }
            }
        }
        self.pending.drain(..at);
        pieces
    }

    /// What came after the last whole value.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }
}

/// A request as its words, when the value is one: an array of strings.
pub fn words(value: &Reply) -> Option<Vec<String>> {
    let Reply::Array(items) = value else {
        return None;
    };
    let word = |item: &Reply| match item {
        Reply::Bulk(text) => Some(text.clone()),
        _ => None,
    };
    items.iter().map(word).collect()
}

/// A blocking connection to a server on this machine.
pub struct Client {
    stream: TcpStream,
    framer: Framer,
    /// Came in one read with an earlier value.
    ready: std::collections::VecDeque<(Reply, Vec<u8>)>,
}

impl Client {
    /// # Errors
    /// Nobody listens, or nobody accepts within `bound`, which is also how long a reply may take.
    pub fn connect(port: u16, bound: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), bound)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(bound))?;
        stream.set_write_timeout(Some(bound))?;
        Ok(Self {
            stream,
            framer: Framer::default(),
            ready: std::collections::VecDeque::new(),
        })
    }

    /// Sends one command and waits for the next value. On a subscribed connection that may be a push.
    pub fn command(&mut self, words: &[&str]) -> io::Result<Reply> {
        self.send(words)?;
        self.receive()
    }

    pub fn send(&mut self, words: &[&str]) -> io::Result<()> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
        }
        self.stream.write_all(&bytes)
    }

    pub fn receive(&mut self) -> io::Result<Reply> {
        Ok(self.receive_both()?.0)
    }

    /// As [`command`](Self::command), for whoever passes the bytes on.
    pub fn command_raw(&mut self, words: &[&str]) -> io::Result<Vec<u8>> {
        self.send(words)?;
        Ok(self.receive_both()?.1)
    }

    fn receive_both(&mut self) -> io::Result<(Reply, Vec<u8>)> {
        let mut bytes = [0; 16 * 1024];
        loop {
            if let Some(reply) = self.ready.pop_front() {
                return Ok(reply);
            }
            let length = match self.stream.read(&mut bytes) {
                // Linux does not restart a read that has a time limit, even after a mere SIGCONT.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for piece in self.framer.feed(&bytes[..length]) {
                match piece {
                    Piece::Value(reply, raw) => self.ready.push_back((reply, raw)),
                    Piece::Raw(raw) => {
                        let text = String::from_utf8_lossy(&raw).into_owned();
                        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                    }
                }
            }
        }
    }

    /// Whether a value comes within `bound`: for claims that nothing comes.
    pub fn hears_within(&mut self, bound: Duration) -> io::Result<Option<Reply>> {
        let usual = self.stream.read_timeout()?;
        self.stream.set_read_timeout(Some(bound))?;
        let heard = self.receive();
        self.stream.set_read_timeout(usual)?;
        match heard {
            Ok(reply) => Ok(Some(reply)),
            Err(error) if is_timeout(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A read that ran out of time says either, depending on the system.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
