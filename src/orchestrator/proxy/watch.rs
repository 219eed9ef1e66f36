//! Hears from the kernel when somebody takes the proxy's table away: a firewall's script that begins with `flush ruleset`, for one.
//!
//! Only what is heard between our own writes is somebody else's doing. What our own writes make the kernel say is thrown away unread, for a
//! large table says more than a socket holds; the kernel is asked instead whether the table stands.

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// The kernel's numbers: linux/netlink.h, linux/netfilter/nfnetlink.h and nf_tables.h.
const GROUP_NFTABLES: u32 = 7;
const ERROR: u16 = 2;
const NEW_TABLE: u16 = 10 << 8;
const GET_TABLE: u16 = NEW_TABLE | 1;
const DELETE_TABLE: u16 = NEW_TABLE | 2;
const REQUEST: u16 = 1;
const FAMILY_IPV4: u8 = 2;
const ATTRIBUTE_NAME: u16 = 1;
/// Before the attributes: a header of 16 bytes, and family, version, resource.
const HEADER: usize = 16;
const GENERAL: usize = 4;

const NAME: &[u8] = b"kprov\0";
/// The kernel packs what it says into less than this.
const LARGEST: usize = 64 << 10;

/// What the kernel says of the proxy's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Made,
    Deleted,
    /// The answer to a question.
    Absent,
    /// More was said than the socket holds: anything may have happened.
    Overrun,
}

/// Hears nothing where the kernel does not let us; changes of Services write the table all the same.
pub struct Watch {
    socket: Option<AsyncFd<OwnedFd>>,
}

impl Watch {
    pub fn open() -> Watch {
        let deaf =
            |error: &io::Error| tracing::warn!(%error, "could not watch the kernel's rules: a table that others flush comes back late");
        Watch { socket: open().inspect_err(deaf).ok() }
    }

    /// Returns when somebody took the table away.
    pub async fn lost(&mut self) {
        loop {
            let Some(socket) = &self.socket else { return std::future::pending().await };
            let heard = match socket.readable().await {
                Ok(mut ready) => {
                    let heard = drain(socket.get_ref());
                    ready.clear_ready();
                    heard
                }
                Err(error) => Err(error),
            };
            if self.unless_broken(heard).iter().any(is_loss) {
                return;
            }
        }
    }

    /// Whether somebody took the table away since the last look.
    pub fn has_lost(&mut self) -> bool {
        let heard = self.socket.as_ref().map_or(Ok(Vec::new()), |socket| drain(socket.get_ref()));
        self.unless_broken(heard).iter().any(is_loss)
    }

    /// Whether the table stands after a write of our own.
    pub fn stands(&mut self) -> bool {
        let answer = self.socket.as_ref().map_or(Ok(Vec::new()), |socket| {
            let socket = socket.get_ref();
            drain(socket)?;
            sendto(socket.as_raw_fd(), &question(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
            drain(socket)
        });
        !self.unless_broken(answer).iter().any(|event| is_loss(event) || *event == Event::Absent)
    }

    fn unless_broken(&mut self, heard: io::Result<Vec<Event>>) -> Vec<Event> {
        heard.unwrap_or_else(|error| {
            tracing::warn!(%error, "could not go on watching the kernel's rules: a table that others flush comes back late");
            self.socket = None;
            Vec::new()
        })
    }
}

fn is_loss(event: &Event) -> bool {
    matches!(event, Event::Deleted | Event::Overrun)
}

fn open() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 1 << (GROUP_NFTABLES - 1)))?;
    // SAFETY: the descriptor is valid, and the AsyncFd owns it until it has deregistered it.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::other)
}

/// Everything that is in the socket now.
fn drain(socket: &OwnedFd) -> io::Result<Vec<Event>> {
    let mut buffer = vec![0_u8; LARGEST];
    let mut events = Vec::new();
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
            Ok(length) if length > buffer.len() => events.push(Event::Overrun),
            Ok(length) => events.extend(read(&buffer[..length])),
            Err(nix::Error::ENOBUFS) => events.push(Event::Overrun),
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => return Ok(events),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Messages as the kernel packs them: each says its length and begins at a multiple of four.
fn read(mut packet: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(length) = number(packet, 0).map(|length| length as usize).filter(|length| (HEADER..=packet.len()).contains(length)) {
        events.extend(event(&packet[..length]));
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    events
}

fn event(message: &[u8]) -> Option<Event> {
    let event = match short(message, 4)? {
        ERROR => return number(message, HEADER).filter(|code| *code as i32 == -libc::ENOENT).map(|_| Event::Absent),
        NEW_TABLE => Event::Made,
        DELETE_TABLE => Event::Deleted,
        _ => return None,
    };
    let is_ours = *message.get(HEADER)? == FAMILY_IPV4 && name(message.get(HEADER + GENERAL..)?) == Some(NAME);
    is_ours.then_some(event)
}

fn name(mut attributes: &[u8]) -> Option<&[u8]> {
    loop {
        let length = usize::from(short(attributes, 0)?);
        let value = attributes.get(4..length)?;
        if short(attributes, 2)? == ATTRIBUTE_NAME {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|two| u16::from_ne_bytes([two[0], two[1]]))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|four| u32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
}

/// "Is this table there?"
fn question() -> Vec<u8> {
    message(GET_TABLE, FAMILY_IPV4, NAME)
}

fn message(kind: u16, family: u8, name: &[u8]) -> Vec<u8> {
    let mut body = vec![family, 0, 0, 0];
    body.extend((4 + name.len() as u16).to_ne_bytes());
    body.extend(ATTRIBUTE_NAME.to_ne_bytes());
    body.extend(name);
    body.resize(body.len().next_multiple_of(4), 0);
    let mut whole = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    whole.extend(kind.to_ne_bytes());
    whole.extend(REQUEST.to_ne_bytes());
    // Nobody else asks on this socket: neither number nor sender is needed.
    whole.extend([0; 8]);
    whole.extend(body);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_proxys_own_table_counts() {
        let check = |kind: u16, family: u8, name: &[u8], expected: &[Event]| {
            assert_eq!(read(&message(kind, family, name)), expected, "{kind} {family} {name:?}");
        };
        check(NEW_TABLE, 2, b"kprov\0", &[Event::Made]);
        check(DELETE_TABLE, 2, b"kprov\0", &[Event::Deleted]);
        check(DELETE_TABLE, 10, b"kprov\0", &[]);
        check(DELETE_TABLE, 2, b"kprovx\0", &[]);
        check(DELETE_TABLE, 2, b"kpro\0", &[]);
        // A chain of that name.
        check(NEW_TABLE | 5, 2, b"kprov\0", &[]);
    }

    #[test]
    fn one_packet_carries_many_messages_and_a_broken_one_ends_it() {
        let all = [message(DELETE_TABLE, 2, b"filter\0"), message(DELETE_TABLE, 2, NAME), message(NEW_TABLE, 2, NAME)].concat();
        assert_eq!(read(&all), [Event::Deleted, Event::Made]);
        assert_eq!(read(&all[..all.len() - 1]), [Event::Deleted]);
        for cut in 0..all.len() {
            read(&all[..cut]);
        }
        let mut endless = message(DELETE_TABLE, 2, NAME);
        endless[..4].copy_from_slice(&0_u32.to_ne_bytes());
        assert_eq!(read(&endless), []);
        // An attribute without a length must not be looked at for ever.
        let mut nameless = message(DELETE_TABLE, 2, NAME);
        nameless[20..24].copy_from_slice(&[0; 4]);
        assert_eq!(read(&nameless), []);
    }

    #[test]
    fn a_refused_question_says_that_the_table_is_not_there() {
        let answer = |code: i32| [&36_u32.to_ne_bytes()[..], &ERROR.to_ne_bytes(), &[0; 10], &code.to_ne_bytes(), &[0; 16]].concat();
        assert_eq!(read(&answer(-libc::ENOENT)), [Event::Absent]);
        assert_eq!(read(&answer(-libc::EPERM)), []);
        assert_eq!(read(&answer(0)), []);
    }
}
