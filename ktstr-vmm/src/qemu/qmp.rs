//! QMP, QEMU's control protocol: one JSON object per line.
//!
//! Source: QEMU 10.0, docs/interop/qmp-spec.rst.

use serde_json::Value;

use crate::error::Error;

/// Bytes of a line at most. No message that this crate asks for comes near this size.
const MAX_LINE: usize = 1 << 20;

/// A message of QEMU.
#[derive(Debug, PartialEq)]
pub(super) enum QmpMessage {
    /// A command was carried out.
    Return { id: u64, value: Value },
    /// A command failed.
    Error {
        /// The ID of the command; `None` if QEMU could not parse it.
        id: Option<u64>,
        desc: String,
    },
    /// The guest has ended, or QEMU is about to exit.
    Shutdown {
        /// A `ShutdownCause` of qapi/run-state.json, such as `guest-shutdown`.
        reason: String,
    },
    /// A migration has reached another `MigrationStatus` of qapi/migration.json.
    Migration {
        /// Such as `completed`.
        status: String,
    },
    /// The greeting, or another event.
    Other,
}

/// Formats a command with its arguments, if any; the answer contains its `id`.
pub(super) fn command(name: &str, arguments: Option<&Value>, id: u64) -> String {
    let mut command = serde_json::json!({ "execute": name, "id": id });
    if let Some(arguments) = arguments {
        command["arguments"] = arguments.clone();
    }
    command.to_string() + "\n"
}

/// Returns the thread IDs of the CPUs in their order, from the answer to `query-cpus-fast`.
pub(super) fn cpu_threads(answer: &Value) -> Result<Vec<i32>, Error> {
    let number = |cpu: &Value, name| cpu.get(name).and_then(Value::as_i64);
    let thread =
        |cpu| Some((number(cpu, "cpu-index")?, number(cpu, "thread-id")?.try_into().ok()?));
    let threads = answer.as_array().and_then(|cpus| cpus.iter().map(thread).collect());
    let mut threads: Vec<(i64, i32)> = threads
        .ok_or_else(|| Error::Protocol(format!("`{answer}` does not list CPUs with threads")))?;
    threads.sort_unstable();
    Ok(threads.into_iter().map(|(_, tid)| tid).collect())
}

/// Splits a stream of bytes into messages.
#[derive(Debug, Default)]
pub(super) struct QmpParser {
    line: Vec<u8>,
}

impl QmpParser {
    /// Adds bytes to the stream and returns the messages that they complete.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<Vec<QmpMessage>, Error> {
        let mut messages = Vec::new();
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.line.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.line);
            if !line.trim_ascii().is_empty() {
                messages.push(parse(&line)?);
            }
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() > MAX_LINE {
            return Err(Error::Protocol(format!("a QMP line of over {MAX_LINE} bytes")));
        }
        Ok(messages)
    }
}

/// Parses a stream in pieces, and returns its messages in their debug form.
///
/// # Errors
///
/// If a line is not a message, or too long.
pub fn parse_stream<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Vec<String>, Error> {
    let mut parser = QmpParser::default();
    let mut messages = Vec::new();
    for piece in pieces {
        messages.extend(parser.push(piece)?.iter().map(|message| format!("{message:?}")));
    }
    Ok(messages)
}

fn parse(line: &[u8]) -> Result<QmpMessage, Error> {
    let not_qmp = || {
        let text: String = String::from_utf8_lossy(line).chars().take(200).collect();
        Error::Protocol(format!("`{text}` is not a QMP message"))
    };
    let value: Value = serde_json::from_slice(line).map_err(|_| not_qmp())?;
    let id = value.get("id").and_then(Value::as_u64);
    if value.get("QMP").is_some() {
        Ok(QmpMessage::Other)
    } else if let Some(name) = value.get("event").and_then(Value::as_str) {
        let data = |pointer| {
            value.pointer(pointer).and_then(Value::as_str).map(str::to_owned).ok_or_else(not_qmp)
        };
        match name {
            "SHUTDOWN" => Ok(QmpMessage::Shutdown { reason: data("/data/reason")? }),
            "MIGRATION" => Ok(QmpMessage::Migration { status: data("/data/status")? }),
            _ => Ok(QmpMessage::Other),
        }
    } else if let Some(error) = value.get("error") {
        let desc = error.get("desc").and_then(Value::as_str).ok_or_else(not_qmp)?;
        Ok(QmpMessage::Error { id, desc: desc.to_owned() })
    } else if let Some(answer) = value.get("return") {
        Ok(QmpMessage::Return { id: id.ok_or_else(not_qmp)?, value: answer.clone() })
    } else {
        Err(not_qmp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU 10.0 sends after `qmp_capabilities`, `stop` and an unknown command, until the
    /// guest powers off.
    const SESSION: &[u8] = br#"{"QMP": {"version": {"qemu": {"micro": 13, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}
{"return": {}, "id": 1}
{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}
{"return": {"status": "paused", "running": false}, "id": 2}
{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION", "data": {"status": "completed"}}
{"id": 3, "error": {"class": "CommandNotFound", "desc": "The command x has not been found"}}
{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}
"#;

    fn session() -> Vec<QmpMessage> {
        vec![
            QmpMessage::Other,
            QmpMessage::Return { id: 1, value: serde_json::json!({}) },
            QmpMessage::Other,
            QmpMessage::Return {
                id: 2,
                value: serde_json::json!({ "status": "paused", "running": false }),
            },
            QmpMessage::Migration { status: "completed".into() },
            QmpMessage::Error { id: Some(3), desc: "The command x has not been found".into() },
            QmpMessage::Shutdown { reason: "guest-shutdown".into() },
        ]
    }

    #[test]
    fn push_accepts_pieces_of_any_size() {
        for size in [1, 7, 64, SESSION.len()] {
            let mut parser = QmpParser::default();
            let pieces = SESSION.chunks(size);
            let messages: Vec<QmpMessage> =
                pieces.flat_map(|piece| parser.push(piece).unwrap()).collect();
            assert_eq!(messages, session(), "in pieces of {size}");
        }
    }

    #[test]
    fn push_accepts_errors_without_id() {
        let line =
            b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\r\n";
        let messages = QmpParser::default().push(line).unwrap();
        assert_eq!(messages, [QmpMessage::Error { id: None, desc: "JSON parse error".into() }]);
    }

    #[test]
    fn push_rejects_other_lines() {
        for line in [
            "qemu: hello\n",
            "[]\n",
            "{}\n",
            "{\"return\": {}}\n",
            "{\"error\": {}}\n",
            "{\"event\": \"SHUTDOWN\"}\n",
            "{\"event\": \"MIGRATION\"}\n",
            "\u{fffd}\n",
        ] {
            let error = QmpParser::default().push(line.as_bytes()).unwrap_err();
            assert!(error.to_string().ends_with("is not a QMP message"), "{line:?}: {error}");
        }
    }

    #[test]
    fn push_limits_the_line_length() {
        let mut parser = QmpParser::default();
        parser.push(&vec![b' '; MAX_LINE]).unwrap();
        assert!(parser.push(b" ").is_err());
    }

    #[test]
    fn command_is_one_line() {
        assert_eq!(command("stop", None, 7), "{\"execute\":\"stop\",\"id\":7}\n");
        let line = command("migrate", Some(&serde_json::json!({ "uri": "file:a\nb" })), 8);
        assert_eq!(
            line,
            "{\"arguments\":{\"uri\":\"file:a\\nb\"},\"execute\":\"migrate\",\"id\":8}\n"
        );
    }

    #[test]
    fn cpu_threads_are_in_cpu_order() {
        let answer = serde_json::json!([
            { "cpu-index": 1, "thread-id": 77, "target": "x86_64" },
            { "cpu-index": 0, "thread-id": 78, "target": "x86_64" },
        ]);
        assert_eq!(cpu_threads(&answer).unwrap(), [78, 77]);
        for wrong in [serde_json::json!({}), serde_json::json!([{ "cpu-index": 0 }])] {
            cpu_threads(&wrong).unwrap_err();
        }
    }
}
