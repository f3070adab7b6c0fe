//! Builds the guest's `/init`, which executes the guest's program with arguments that do not fit on a kernel
//! command line.
//!
//! A command line has at most 2,047 bytes, is split at spaces and at the byte A0, and is unquoted.
//! So `/init` is a static ELF file with one segment, assembled here by hand: a few instructions, followed by
//! the path and the arguments of the program. It passes on its own environment. If the program cannot be
//! executed, it writes the errno to the console and exits.
//!
//! Source: System V ABI, AMD64 supplement, 3.4.1 (the stack at process entry), appendix A.2.1
//! (system calls); elf(5).

use anyhow::{Result, ensure};
use ktstr_core::model::pid1::FAILURE_PREFIX;

/// The address of the segment, the default of linkers for static programs.
const BASE: u64 = 0x40_0000;

/// The ELF header and two program headers.
const HEADERS: usize = 64 + 2 * 56;

/// The instructions. [`build`] fills in PATH, ARGV, MESSAGE and MESSAGE_LEN.
///
/// ```text
///     mov  rax, [rsp]             ; argc
///     lea  rdx, [rsp+rax*8+16]    ; envp: behind argc, argv and its null
///     mov  edi, PATH
///     mov  esi, ARGV
///     mov  eax, 59                ; execve
///     syscall
///     neg  eax                    ; errno
///     mov  rbx, rsp               ; digits are written downwards from here
///     dec  rbx
///     mov  byte [rbx], 10         ; line feed
///     mov  ecx, 10
/// 1:  xor  edx, edx
///     div  ecx
///     add  dl, 48
///     dec  rbx
///     mov  [rbx], dl
///     test eax, eax
///     jnz  1b
///     mov  edi, 2
///     mov  esi, MESSAGE
///     mov  edx, MESSAGE_LEN
///     mov  eax, 1                 ; write
///     syscall
///     mov  edi, 2
///     mov  rsi, rbx
///     mov  rdx, rsp
///     sub  rdx, rbx
///     mov  eax, 1                 ; write
///     syscall
///     mov  edi, 1
///     mov  eax, 60                ; exit
///     syscall
/// ```
#[rustfmt::skip]
const CODE: [u8; 113] = [
    0x48, 0x8b, 0x04, 0x24,
    0x48, 0x8d, 0x54, 0xc4, 0x10,
    0xbf, 0, 0, 0, 0,
    0xbe, 0, 0, 0, 0,
    0xb8, 59, 0, 0, 0,
    0x0f, 0x05,
    0xf7, 0xd8,
    0x48, 0x89, 0xe3,
    0x48, 0xff, 0xcb,
    0xc6, 0x03, 10,
    0xb9, 10, 0, 0, 0,
    0x31, 0xd2,
    0xf7, 0xf1,
    0x80, 0xc2, 48,
    0x48, 0xff, 0xcb,
    0x88, 0x13,
    0x85, 0xc0,
    0x75, 0xf0,
    0xbf, 2, 0, 0, 0,
    0xbe, 0, 0, 0, 0,
    0xba, 0, 0, 0, 0,
    0xb8, 1, 0, 0, 0,
    0x0f, 0x05,
    0xbf, 2, 0, 0, 0,
    0x48, 0x89, 0xde,
    0x48, 0x89, 0xe2,
    0x48, 0x29, 0xda,
    0xb8, 1, 0, 0, 0,
    0x0f, 0x05,
    0xbf, 1, 0, 0, 0,
    0xb8, 60, 0, 0, 0,
    0x0f, 0x05,
];

/// The offsets of the four operands in [`CODE`].
const PATH: usize = 10;
const ARGV: usize = 15;
const MESSAGE: usize = 64;
const MESSAGE_LEN: usize = 69;

/// Returns the file that executes `program` with itself and `arguments` as its arguments.
///
/// # Errors
///
/// If an argument contains a NUL, or the file would need addresses of more than 32 bits.
pub(super) fn build(program: &str, arguments: &[String]) -> Result<Vec<u8>> {
    let message = format!("{FAILURE_PREFIX}cannot execute {program}: errno ");
    let mut file = vec![0; HEADERS];
    file.extend_from_slice(&CODE);
    let end = |file: &Vec<u8>| BASE + file.len() as u64;
    let address = end(&file);
    set_operand(&mut file, MESSAGE, address);
    set_operand(&mut file, MESSAGE_LEN, message.len() as u64);
    file.extend_from_slice(message.as_bytes());
    let address = end(&file);
    set_operand(&mut file, PATH, address);
    let mut argv = Vec::new();
    for argument in [program].into_iter().chain(arguments.iter().map(String::as_str)) {
        ensure!(!argument.contains('\0'), "the argument {argument:?} contains a NUL");
        argv.push(end(&file));
        file.extend_from_slice(argument.as_bytes());
        file.push(0);
    }
    argv.push(0);
    file.resize(file.len().next_multiple_of(8), 0);
    let address = end(&file);
    set_operand(&mut file, ARGV, address);
    file.extend(argv.into_iter().flat_map(u64::to_le_bytes));
    ensure!(file.len() < i32::MAX as usize, "the arguments have {} bytes", file.len());
    let headers = headers(file.len() as u64);
    file[..HEADERS].copy_from_slice(&headers);
    Ok(file)
}

/// Sets the operand at `offset` of the code. Every value fits because the caller bounds the file.
fn set_operand(file: &mut [u8], offset: usize, value: u64) {
    file[HEADERS + offset..][..4].copy_from_slice(&(value as u32).to_le_bytes());
}

/// Returns the headers of a file of `size` bytes, all of which is one segment.
fn headers(size: u64) -> Vec<u8> {
    const EXECUTE: u32 = 1;
    const WRITE: u32 = 2;
    const READ: u32 = 4;
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |bytes: &mut Vec<u8>, values: &[u16]| {
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    let word = |bytes: &mut Vec<u8>, values: &[u32]| {
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    let long = |bytes: &mut Vec<u8>, values: &[u64]| {
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    // ET_EXEC, EM_X86_64, EV_CURRENT; the entry; the program headers and no sections.
    half(&mut bytes, &[2, 62]);
    word(&mut bytes, &[1]);
    long(&mut bytes, &[BASE + HEADERS as u64, 64, 0]);
    word(&mut bytes, &[0]);
    half(&mut bytes, &[64, 56, 2, 64, 0, 0]);
    // PT_LOAD.
    word(&mut bytes, &[1, READ | EXECUTE]);
    long(&mut bytes, &[0, BASE, BASE, size, size, 0x1000]);
    // PT_GNU_STACK: without it the kernel makes the stack executable, and warns about that.
    word(&mut bytes, &[0x6474_e551, READ | WRITE]);
    long(&mut bytes, &[0, 0, 0, 0, 0, 16]);
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Output, Stdio};

    use super::*;

    /// Runs the file with another `argv` and one variable.
    fn run(program: &str, arguments: &[&str]) -> Output {
        let arguments: Vec<_> = arguments.iter().map(|word| (*word).to_owned()).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("init");
        // Another process writes the file. If this one did, processes forked by other threads could keep it
        // open for writing, and execve would fail with ETXTBSY.
        let mut writer = Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let file = build(program, &arguments).unwrap();
        writer.stdin.take().unwrap().write_all(&file).unwrap();
        assert!(writer.wait().unwrap().success());
        let mut command = Command::new(&path);
        command.arg0("/init").arg("ignored").env_clear().env("GREETING", "hello");
        command.output().unwrap()
    }

    #[test]
    fn launcher_passes_arguments_and_environment() {
        let long = "x".repeat(5000);
        for arguments in [
            &["-c", "printf '%s\\n' \"$GREETING\" \"$@\"", "sh", "one"][..],
            &["-c", "printf '%s\\n' \"$GREETING\" \"$@\"", "sh", "voilà", "", "a b\"c", &long],
        ] {
            let output = run("/bin/sh", arguments);
            let want = [&["hello"], &arguments[3..]].concat().join("\n") + "\n";
            assert_eq!(String::from_utf8(output.stdout).unwrap(), want);
            assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
        }
    }

    #[test]
    fn launcher_names_a_program_that_cannot_be_executed() {
        for (program, errno) in [("/nothing/here", 2), ("/dev/null", 13)] {
            let output = run(program, &[]);
            let want = format!("{FAILURE_PREFIX}cannot execute {program}: errno {errno}\n");
            assert_eq!(String::from_utf8(output.stderr).unwrap(), want);
            assert_eq!(output.status.code(), Some(1));
        }
    }

    #[test]
    fn launcher_refuses_an_argument_with_a_nul() {
        let error = build("/bin/true", &["a\0b".to_owned()]).unwrap_err().to_string();
        assert_eq!(error, "the argument \"a\\0b\" contains a NUL");
    }
}
