//! How long a connection whose other end says nothing is believed in.

use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::os::fd::AsFd;

/// Seconds of silence before the kernel asks the other end, and between its questions. Left alone it asks after two hours; a machine
/// that was taken away never says that it is gone.
const SILENCE_SECONDS: u32 = 30;
const REPEAT_SECONDS: u32 = 10;
/// Questions without an answer: a minute after its last word the other end counts as gone, and reads and writes fail.
const QUESTIONS: u32 = 3;

/// For TCP connections that may be silent for long and still be in use: logs that are followed, streams into pods (tcp(7)).
pub fn keep_alive(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &SILENCE_SECONDS)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &REPEAT_SECONDS)?;
    setsockopt(socket, sockopt::TcpKeepCount, &QUESTIONS)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;

    #[test]
    fn the_kernel_is_told_to_ask() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listening");
        let stream = std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        assert!(!getsockopt(&stream, sockopt::KeepAlive).expect("read"));
        keep_alive(&stream).expect("set");
        assert!(getsockopt(&stream, sockopt::KeepAlive).expect("read"));
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepIdle).expect("read"), SILENCE_SECONDS);
    }
}
