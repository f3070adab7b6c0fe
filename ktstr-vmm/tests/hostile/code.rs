//! Machine code for hostile guests: the instructions of a 64-bit CPU that they need.
//!
//! Source: Intel SDM vol. 2, chapters 3 to 5 ("Instruction Set Reference").

/// ACPI's sleep control register, and the value that powers off.
const SLEEP_CONTROL: (u16, u8) = (0x600, 0x34);

/// A sequence of instructions.
///
/// Methods with an address or a port clobber EDI or EDX, and EAX. Loops count in EBP or EBX.
#[derive(Debug, Default, Clone)]
pub(crate) struct Code(pub(crate) Vec<u8>);

impl Code {
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn with(&mut self, opcode: &[u8], immediate: u32) -> &mut Self {
        self.raw(opcode).raw(&immediate.to_le_bytes())
    }

    /// Appends `mov eax, value`.
    pub(crate) fn eax(&mut self, value: u32) -> &mut Self {
        self.with(&[0xb8], value)
    }

    /// Appends `mov ecx, value`.
    pub(crate) fn ecx(&mut self, value: u32) -> &mut Self {
        self.with(&[0xb9], value)
    }

    /// Appends `mov edx, value`.
    pub(crate) fn edx(&mut self, value: u32) -> &mut Self {
        self.with(&[0xba], value)
    }

    /// Appends `mov esi, value`.
    pub(crate) fn esi(&mut self, value: u32) -> &mut Self {
        self.with(&[0xbe], value)
    }

    /// Appends `mov edi, value`.
    pub(crate) fn edi(&mut self, value: u32) -> &mut Self {
        self.with(&[0xbf], value)
    }

    /// Appends `out port, al`.
    pub(crate) fn out8(&mut self, port: u16, value: u8) -> &mut Self {
        self.edx(port.into()).eax(value.into()).raw(&[0xee])
    }

    /// Appends `out port, eax`.
    pub(crate) fn out32(&mut self, port: u16, value: u32) -> &mut Self {
        self.edx(port.into()).eax(value).raw(&[0xef])
    }

    /// Appends `mov byte [at], value`.
    pub(crate) fn store8(&mut self, at: u32, value: u8) -> &mut Self {
        self.edi(at).raw(&[0xc6, 0x07, value])
    }

    /// Appends `mov word [at], value`.
    pub(crate) fn store16(&mut self, at: u32, value: u16) -> &mut Self {
        self.edi(at).raw(&[0x66, 0xc7, 0x07]).raw(&value.to_le_bytes())
    }

    /// Appends `mov dword [at], value`.
    pub(crate) fn store32(&mut self, at: u32, value: u32) -> &mut Self {
        self.edi(at).with(&[0xc7, 0x07], value)
    }

    /// Appends `mov eax, [from]; mov [to], eax`.
    pub(crate) fn copy32(&mut self, from: u32, to: u32) -> &mut Self {
        self.edi(from).raw(&[0x8b, 0x07]).edi(to).raw(&[0x89, 0x07])
    }

    /// Appends `inc word [at]`.
    pub(crate) fn inc16(&mut self, at: u32) -> &mut Self {
        self.edi(at).raw(&[0x66, 0xff, 0x07])
    }

    /// Repeats `body` `count` times, counted in EBP, which `body` must not change.
    pub(crate) fn repeat(
        &mut self,
        count: u32,
        body: impl FnOnce(&mut Self) -> &mut Self,
    ) -> &mut Self {
        self.with(&[0xbd], count);
        let top = self.0.len();
        body(self);
        self.raw(&[0xff, 0xcd]).back(&[0x0f, 0x85], top)
    }

    /// Repeats `body` in an endless loop.
    pub(crate) fn forever(&mut self, body: impl FnOnce(&mut Self) -> &mut Self) -> &mut Self {
        let top = self.0.len();
        body(self);
        self.back(&[0xe9], top)
    }

    /// Appends a near jump back.
    fn back(&mut self, opcode: &[u8], to: usize) -> &mut Self {
        let end = self.0.len() + opcode.len() + 4;
        self.with(opcode, (to as u32).wrapping_sub(end as u32))
    }

    /// Appends `jmp $`.
    pub(crate) fn spin(&mut self) -> &mut Self {
        self.raw(&[0xeb, 0xfe])
    }

    /// Powers off, then loops.
    pub(crate) fn power_off(&mut self) -> &mut Self {
        let (port, value) = SLEEP_CONTROL;
        self.out8(port, value).spin()
    }

    /// Starts all other CPUs at 0x8000 in real mode with this code of at most a page.
    pub(crate) fn start_others(&mut self, real_mode: &[u8]) -> &mut Self {
        for (at, dword) in (0x8000..).step_by(4).zip(real_mode.chunks(4)) {
            let mut bytes = [0x90; 4];
            bytes[..dword.len()].copy_from_slice(dword);
            self.store32(at, u32::from_le_bytes(bytes));
        }
        // INIT and start-up to all CPUs but this one, by the interrupt command register.
        for command in [0xc_4500, 0xc_4608] {
            self.store32(0xfee0_0300, command);
        }
        self
    }
}
