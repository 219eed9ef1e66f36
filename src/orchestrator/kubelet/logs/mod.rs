//! Container logs: the runtime's format decoded, read with `kubectl logs`' options, followed by file events, rotated.

pub mod follow;
pub mod rotate;

use k8s_openapi::jiff::Timestamp;

/// What `kubectl logs` asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<usize>,
    pub since: Option<Timestamp>,
    pub limit_bytes: Option<u64>,
}

impl Options {
    /// From a query string; the error is the text of a 400.
    pub fn parse(query: &str, now: Timestamp) -> Result<Options, String> {
        let mut options = Options::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
            let value = decode(value);
            let flag = || matches!(value.as_str(), "true" | "1" | "");
            let number = || value.parse::<u64>().map_err(|_| format!("{key} must be a number, not {value:?}"));
            match key {
                "follow" => options.follow = flag(),
                "previous" => options.previous = flag(),
                "timestamps" => options.timestamps = flag(),
                "tailLines" => options.tail_lines = Some(number()? as usize),
                "limitBytes" => options.limit_bytes = Some(number()?),
                "sinceSeconds" => options.since = Timestamp::from_second(now.as_second() - number()? as i64).ok(),
                "sinceTime" => options.since = Some(value.parse().map_err(|_| format!("sinceTime must be a time, not {value:?}"))?),
                // container and what later versions add
                _ => {}
            }
        }
        Ok(options)
    }
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten().and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.push(code.unwrap_or(if bytes[at] == b'+' { b' ' } else { bytes[at] }));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Turns lines as the runtime writes them (`2026-11-23T19:11:03.75Z stdout F text`) into what the container wrote.
#[derive(Debug)]
pub struct Decoder {
    options: Options,
    left: u64,
    /// The last piece was partial: the next one goes on the same line, without a time of its own.
    partial: bool,
}

impl Decoder {
    pub fn new(options: &Options) -> Decoder {
        Decoder { left: options.limit_bytes.unwrap_or(u64::MAX), options: options.clone(), partial: false }
    }

    /// True when the reader has all that it asked for.
    pub fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Appends one line's text to `out`; what is not in the format is passed on as it is.
    pub fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let before = out.len();
        match split(line) {
            Some((time, full, text)) => {
                if self.options.since.is_some_and(|since| {
                    std::str::from_utf8(time).ok().and_then(|time| time.parse::<Timestamp>().ok()).is_some_and(|time| time < since)
                }) {
                    return;
                }
                if self.options.timestamps && !self.partial {
                    out.extend_from_slice(time);
                    out.push(b' ');
                }
                out.extend_from_slice(text);
                if full {
                    out.push(b'\n');
                }
                self.partial = !full;
            }
            None => {
                out.extend_from_slice(line);
                out.push(b'\n');
            }
        }
        let added = (out.len() - before) as u64;
        if added > self.left {
            out.truncate(before + self.left as usize);
        }
        self.left = self.left.saturating_sub(added);
    }
}

fn split(line: &[u8]) -> Option<(&[u8], bool, &[u8])> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next().unwrap_or_default());
    let known = matches!(stream, b"stdout" | b"stderr") && time.len() >= 20;
    known.then(|| (time, !tag.split(|byte| *byte == b':').any(|tag| tag == b"P"), text))
}

/// Where in the file the last `lines` full lines begin.
pub fn tail_start(content: &[u8], lines: usize) -> usize {
    let mut wanted = lines;
    let mut end = content.len();
    let mut start = end;
    while end > 0 {
        let from = content[..end - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let piece = &content[from..end];
        // Pieces before a full line belong to it.
        if split(piece.strip_suffix(b"\n").unwrap_or(piece)).is_none_or(|(_, full, _)| full) {
            if wanted == 0 {
                return start;
            }
            wanted -= 1;
        }
        (start, end) = (from, from);
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-11-23T19:11:03.750162184Z stdout F one\n2026-11-23T19:11:04.1Z stderr P tw\n2026-11-23T19:11:04.2Z stderr F o\n2026-11-23T19:11:05.0Z stdout F \n2026-11-23T19:11:06.0Z stdout F a b c\n";

    fn read(query: &str) -> String {
        let options = Options::parse(query, "2026-11-23T19:11:07Z".parse().unwrap()).unwrap();
        let mut decoder = Decoder::new(&options);
        let content = LOG.as_bytes();
        let start = options.tail_lines.map_or(0, |lines| tail_start(content, lines));
        let mut out = Vec::new();
        content[start..].split_inclusive(|byte| *byte == b'\n').for_each(|line| decoder.line(&line[..line.len() - 1], &mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn options_choose_what_is_shown() {
        let check = |query: &str, wanted: &str| assert_eq!(read(query), wanted, "{query}");
        check("", "one\ntwo\n\na b c\n");
        check("tailLines=1", "a b c\n");
        check("tailLines=3", "two\n\na b c\n");
        check("tailLines=0", "");
        check("tailLines=99", "one\ntwo\n\na b c\n");
        check("sinceSeconds=2", "\na b c\n");
        check("sinceTime=2026-11-23T19%3A11%3A06Z", "a b c\n");
        check("limitBytes=5", "one\nt");
        check("tailLines=3&timestamps=true", "2026-11-23T19:11:04.1Z two\n2026-11-23T19:11:05.0Z \n2026-11-23T19:11:06.0Z a b c\n");
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        assert!(Options::parse("tailLines=x", Timestamp::UNIX_EPOCH).is_err());
        assert!(Options::parse("sinceTime=yesterday", Timestamp::UNIX_EPOCH).is_err());
    }
}
