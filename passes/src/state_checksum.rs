//! The consistency check of replicas: a program of its own that says which held states are not alike on all of them.
//!
//! States that begin alike stay alike (see [`gradient_all_reduce`](crate::gradient_all_reduce)), unless a device computes
//! something else than another does, or loses a bit. This program makes one number of every state and compares these numbers.
//! It changes nothing, is compiled for as many replicas as the step, and is launched between two steps.
//!
//! ```text
//! x₀, x₁, …       the bits of a state as words of 32 bits, in row-major order; element by element, low word first
//! hᵢ(x)           m(x ⊕ i·c₀)            with c₀ odd, i mod 2³²
//! m(y)            y ⊕= y»16;  y ·= c₁;  y ⊕= y»13;  y ·= c₂;  y ⊕= y»16      with c₁, c₂ odd, mod 2³²
//! s               Σᵢ hᵢ(xᵢ) mod 2³²      the state's checksum
//! a               all-reduce(min) of [s, ¬s] of all states at once
//! differs         a₁ ≠ ¬a₂               the least is not the greatest
//! ```
//!
//! # What is detected
//!
//! Every hᵢ is a bijection of the 2³² words, since odd factors and shifted exclusive ors can be undone: where **one** word
//! differs, s differs, always. Where several do, s is equal by chance once in 2³² ≈ 4.3·10⁹ differences, per state. A sum
//! of `wᵢ·xᵢ` would not do: the sign bit is `2³¹` times anything odd, so that `a` and `-a` could change places unseen.
//!
//! Bits are compared, not numbers: `-0.0` is not `0.0`, and NaNs of different payload differ. Truth values count as the 0
//! or 1 that they are read as. Types narrower than a word are widened without loss, numbers of 64 bits are two words, complex
//! numbers their real part and their imaginary part.
//!
//! # Interface
//!
//! Parameter k is state k. The one output is u32\[2·T\] for T states: whether each differs, 0 or 1 and the same on all
//! replicas, then each one's checksum on this replica. [`Compared`] reads it.

use hlo::build::{BuildError, Builder, Built, ComparisonDirection};
use hlo::proto::HloInstructionProto;
use hlo::{ComputationId, InstructionId, Module, Opcode, PrimitiveType, Shape};
use thiserror::Error;

/// c₀, which takes the position of a word into it: 2³² divided by the golden ratio, made odd.
pub(crate) const POSITION: u32 = 0x9e37_79b9;

/// c₁ of the mixing, by Appleby (MurmurHash3).
pub(crate) const FIRST: u32 = 0x85eb_ca6b;

/// c₂ of it.
pub(crate) const SECOND: u32 = 0xc2b2_ae35;

/// Why there is no program.
#[derive(Debug, Error)]
pub enum ChecksumError {
    /// There is nothing to compare.
    #[error("there is no state to compare: the step holds none")]
    Empty,
    /// A state has no bits that could be compared.
    #[error("state {index} is {shape}, and only arrays of numbers can be compared")]
    Type {
        /// Its number among those given.
        index: usize,
        /// Its shape.
        shape: String,
    },
    /// The program cannot be put together.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// What the program said on one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// Whether replicas differ, by state.
    pub differs: Vec<bool>,
    /// Checksum on this replica, by state.
    pub checksums: Vec<u32>,
}

impl Compared {
    /// Reads the output, little-endian; `None` where it is not one of so many states.
    #[must_use]
    pub fn decode(bytes: &[u8], states: usize) -> Option<Self> {
        let (words, rest) = bytes.as_chunks();
        let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let (differs, checksums) = words.split_at_checked(states)?;
        let whole = rest.is_empty() && checksums.len() == states;
        whole.then(|| Self { differs: differs.iter().map(|&d| d != 0).collect(), checksums: checksums.to_vec() })
    }

    /// One number of all checksums, in order (Fowler, Noll and Vo's hash over words): equal for two runs that hold the same.
    #[must_use]
    pub fn digest(&self) -> u32 {
        self.checksums.iter().fold(0x811c_9dc5, |hash: u32, checksum| (hash ^ checksum).wrapping_mul(0x0100_0193))
    }

    /// Numbers of the states that are not alike.
    pub fn differing(&self) -> impl Iterator<Item = usize> + '_ {
        self.differs.iter().enumerate().filter(|(_, differs)| **differs).map(|(state, _)| state)
    }
}

/// The program that compares states of these shapes over all replicas.
///
/// # Errors
///
/// Where there is no state, or one is no array.
pub fn state_checksum(states: &[Shape]) -> Result<Module, ChecksumError> {
    let mut module = Module::new("state_checksum");
    let sum = Builder::reducer(&mut module, "checksum.add", Opcode::Add, PrimitiveType::U32)?;
    let least = Builder::reducer(&mut module, "checksum.min", Opcode::Minimum, PrimitiveType::U32)?;
    let mut b = Builder::at_entry(&mut module);
    let parameters: Vec<_> =
        states.iter().map(|shape| b.parameter("state", shape.clone())).collect::<Result<_, _>>()?;
    if parameters.is_empty() {
        return Err(ChecksumError::Empty);
    }
    b.set_scope("checksum", "");
    let mut emitter = Emitter { b, sum };
    let mut checksums = Vec::with_capacity(states.len());
    for (index, (shape, parameter)) in states.iter().zip(parameters).enumerate() {
        let words = emitter.words(parameter, shape)?;
        let words = words.ok_or_else(|| ChecksumError::Type { index, shape: shape.to_string() })?;
        checksums.push(emitter.checksum(&words, shape)?);
    }
    let b = &mut emitter.b;
    let own = b.pack(&checksums)?;
    let inverse = b.not(own)?;
    let both = b.concatenate(&[own, inverse], 0)?;
    let reduced = b.all_reduce(both, least)?;
    let count = states.len() as i64;
    let smallest = b.slice_vector(reduced, 0, count)?;
    let largest = b.slice_vector(reduced, count, 2 * count)?;
    let largest = b.not(largest)?;
    let differs = b.compare(smallest, largest, ComparisonDirection::Ne)?;
    let differs = b.convert(differs, PrimitiveType::U32)?;
    let root = b.concatenate(&[differs, own], 0)?;
    b.set_root(root)?;
    Ok(module)
}

struct Emitter<'m> {
    b: Builder<'m>,
    sum: ComputationId,
}

impl Emitter<'_> {
    /// The words of each element, the low one first, each u32 in the dimensions of the state; `None` for what has no bits.
    fn words(&mut self, x: InstructionId, shape: &Shape) -> Result<Option<Vec<InstructionId>>, BuildError> {
        use PrimitiveType as P;
        let element_type = shape.element_type();
        Ok(Some(match (element_type, element_type.bits()) {
            (P::C64 | P::C128, _) => {
                let parts = [self.b.emit(Opcode::Real, &[x])?, self.b.emit(Opcode::Imag, &[x])?];
                let mut words = Vec::new();
                for part in parts {
                    let shape = self.b.shape(part)?;
                    words.extend(self.words(part, &shape)?.unwrap_or_default());
                }
                words
            }
            (P::PRED | P::U2 | P::U4, _) => vec![self.b.convert(x, P::U32)?],
            // Sign extension takes nothing away.
            (P::S2 | P::S4, _) => {
                let wide = self.b.convert(x, P::S32)?;
                vec![self.bits(wide, P::U32)?]
            }
            // As does a wider float: these have no NaN.
            (_, 4) => {
                let wide = self.b.convert(x, P::F32)?;
                vec![self.bits(wide, P::U32)?]
            }
            (_, 8) => {
                let bits = self.bits(x, P::U8)?;
                vec![self.b.convert(bits, P::U32)?]
            }
            (_, 16) => {
                let bits = self.bits(x, P::U16)?;
                vec![self.b.convert(bits, P::U32)?]
            }
            (_, 32) => vec![self.bits(x, P::U32)?],
            (_, 64) => {
                let bits = self.bits(x, P::U64)?;
                let by = self.b.constant(P::U32, 32.0)?;
                let by = self.b.convert(by, P::U64)?;
                let by = self.b.broadcast_scalar_like(by, bits)?;
                let high = self.b.emit(Opcode::ShiftRightLogical, &[bits, by])?;
                vec![self.b.convert(bits, P::U32)?, self.b.convert(high, P::U32)?]
            }
            // Of 1 bit, too: no array of a step is, and XLA's CPU compiler dies of them.
            _ => return Ok(None),
        }))
    }

    /// The same bits as another type of that width.
    fn bits(&mut self, x: InstructionId, to: PrimitiveType) -> Built {
        let shape = self.b.shape(x)?;
        if shape.element_type() == to {
            return Ok(x);
        }
        let stated = shape.with_element_type(to);
        self.b.emit_with(Opcode::BitcastConvert, &[x], stated, HloInstructionProto::default(), Vec::new())
    }

    fn number(&mut self, value: u32, like: InstructionId) -> Built {
        let value = self.b.constant(PrimitiveType::U32, f64::from(value))?;
        self.b.broadcast_scalar_like(value, like)
    }

    /// Σᵢ hᵢ(xᵢ) in u32\[\].
    fn checksum(&mut self, words: &[InstructionId], shape: &Shape) -> Built {
        let Some(&first) = words.first() else { return self.b.constant(PrimitiveType::U32, 0.0) };
        // In the state's own dimensions, since another shape could cost a copy where arrays are tiled.
        let element = self.element(shape, first)?;
        let per_element = u32::try_from(words.len()).unwrap_or(1);
        let mut total: Option<InstructionId> = None;
        for (&word, number) in words.iter().zip(0_u32..) {
            // (words·i + k)·c₀
            let factor = self.number(POSITION.wrapping_mul(per_element), word)?;
            let mut position = self.b.multiply(element, factor)?;
            if number > 0 {
                let offset = self.number(POSITION.wrapping_mul(number), word)?;
                position = self.b.add(position, offset)?;
            }
            let mixed = self.b.xor(word, position)?;
            let mixed = self.mix(mixed)?;
            total = Some(match total {
                Some(total) => self.b.add(total, mixed)?,
                None => mixed,
            });
        }
        let zero = self.b.constant(PrimitiveType::U32, 0.0)?;
        self.b.reduce_all(total.unwrap_or(first), zero, self.sum)
    }

    /// Number of each element in row-major order, mod 2³², in u32 of the state's dimensions.
    fn element(&mut self, shape: &Shape, like: InstructionId) -> Built {
        let stated = self.b.shape(like)?;
        let mut stride = 1_u32;
        let mut number: Option<InstructionId> = None;
        for (dimension, &size) in shape.dims().iter().enumerate().rev() {
            if size != 1 {
                let attributes = HloInstructionProto { dimensions: vec![dimension as i64], ..Default::default() };
                let along = self.b.emit_with(Opcode::Iota, &[], stated.clone(), attributes, Vec::new())?;
                let along = match stride {
                    1 => along,
                    _ => {
                        let stride = self.number(stride, along)?;
                        self.b.multiply(along, stride)?
                    }
                };
                number = Some(match number {
                    Some(number) => self.b.add(number, along)?,
                    None => along,
                });
            }
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positions count mod 2³²")]
            let size = size as u32;
            stride = stride.wrapping_mul(size);
        }
        match number {
            Some(number) => Ok(number),
            None => self.number(0, like),
        }
    }

    fn mix(&mut self, y: InstructionId) -> Built {
        let mut y = y;
        for (shift, factor) in [(16, Some(FIRST)), (13, Some(SECOND)), (16, None)] {
            let shift = self.number(shift, y)?;
            let shifted = self.b.emit(Opcode::ShiftRightLogical, &[y, shift])?;
            y = self.b.xor(y, shifted)?;
            if let Some(factor) = factor {
                let factor = self.number(factor, y)?;
                y = self.b.multiply(y, factor)?;
            }
        }
        Ok(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_obeys_the_rules_and_says_what_it_does_not_take() {
        let states = [Shape::array(PrimitiveType::BF16, &[3, 1, 4]), Shape::scalar(PrimitiveType::C64)];
        let module = state_checksum(&states).unwrap();
        hlo::verify::verify(&module).unwrap();
        let reduces = module.entry_computation().instructions().filter(|(_, i)| i.opcode == Opcode::AllReduce).count();
        assert_eq!(reduces, 1, "all states go in one exchange");
        assert!(matches!(state_checksum(&[]), Err(ChecksumError::Empty)));
        let bit = state_checksum(&[states[0].clone(), Shape::array(PrimitiveType::U1, &[8])]).unwrap_err().to_string();
        assert!(bit.contains("state 1 is u1[8]"), "{bit}");
        let token = state_checksum(&[Shape::tuple(vec![])]).unwrap_err().to_string();
        assert!(token.contains("state 0 is ()"), "{token}");
    }

    #[test]
    fn output_is_read_whole_or_not_at_all() {
        let bytes: Vec<u8> = [0_u32, 1, 7, 9].into_iter().flat_map(u32::to_le_bytes).collect();
        let read = Compared::decode(&bytes, 2).unwrap();
        assert_ne!(read.digest(), Compared { checksums: vec![9, 7], ..read.clone() }.digest());
        assert_eq!((read.differing().collect::<Vec<_>>(), read.checksums), (vec![1], vec![7, 9]));
        assert_eq!(Compared::decode(&bytes, 1), None);
        assert_eq!(Compared::decode(&bytes[1..], 2), None);
    }
}
