//! What an optimized module launches: its kernels, its collectives, and what brings the host in.
//!
//! A kernel is one thing that the device is told to do: a fusion, a copy, a library or custom call, a collective, or
//! an operation by itself. What only names a value (a tuple, a bitcast) is none. The body of a loop counts as often as
//! it runs, and once where the compiler does not know how often; the body of a call counts where it is called; of the
//! branches of a `conditional` all count.

use std::collections::BTreeSet;

use hlo::{Computation, ComputationId, Instruction, InstructionId, Module, Opcode};
use serde::Serialize;

use super::cost::{self, Memories};
use super::trips::trip_count;
use crate::target::Platform;

/// The prefix of the `op_name` of everything that injection puts into a step.
const CONTROLLER: &str = "entropic/";

/// The kinds of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelKind {
    /// Operations that the compiler put together.
    Fusion,
    /// A copy, synchronous or not.
    Copy,
    /// A library's or the user's code.
    Call,
    /// Communication between devices.
    Collective,
    /// Any other operation by itself.
    Other,
    /// Arithmetic on single numbers, which a TPU's scalar unit does beside the rest.
    Scalar,
}

impl KernelKind {
    /// All kinds, in the order of a report.
    pub const ALL: [Self; 6] = [Self::Fusion, Self::Copy, Self::Call, Self::Collective, Self::Other, Self::Scalar];

    /// What a report calls it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Fusion => "fusions",
            Self::Copy => "copies",
            Self::Call => "library and custom calls",
            Self::Collective => "collectives",
            Self::Other => "other operations",
            Self::Scalar => "scalar operations",
        }
    }
}

/// One kernel of a step.
#[derive(Debug, Clone, Serialize)]
pub struct Kernel {
    /// Name of the instruction.
    pub name: String,
    /// Its kind.
    pub kind: KernelKind,
    /// How often it is launched in one step.
    pub launches: u64,
    /// The controller's operations in it, by their `op_name`; a tensor's path is part of it.
    pub controller_ops: Vec<String>,
    /// How many operations in it the front end made.
    pub other_ops: usize,
    /// Bytes that it reads and writes in one launch, as far as shapes tell.
    pub bytes: u64,
    /// Those of main memory alone, without what stays in faster memories.
    pub main_memory_bytes: u64,
    /// Floating-point operations of one launch, as far as shapes tell.
    pub flops: u64,
    /// Those of them that are of products and convolutions.
    pub product_flops: u64,
    /// What it does apart from the controller: equal for the same kernel of two compilations.
    #[serde(skip)]
    pub signature: Vec<String>,
}

impl Kernel {
    /// Whether nothing but control is in it.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.other_ops == 0 && !self.controller_ops.is_empty()
    }
}

/// Something in a step that makes the host take part in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostConstruct {
    /// Name of the instruction.
    pub name: String,
    /// What it is, as in `infeed`.
    pub what: String,
    /// Its `op_name`.
    pub op_name: String,
}

/// Communication between devices.
#[derive(Debug, Clone, Serialize)]
pub struct Collective {
    /// Name of the instruction.
    pub name: String,
    /// The operation, as in `all-reduce`.
    pub opcode: String,
    /// How often it runs in one step.
    pub launches: u64,
    /// Bytes of its result.
    pub bytes: u64,
    /// Its `op_name`.
    pub op_name: String,
}

/// Everything that a module does on the device in one step.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Profile {
    /// Its kernels, in order.
    pub kernels: Vec<Kernel>,
    /// Its collectives, which are among the kernels, too.
    pub collectives: Vec<Collective>,
    /// What brings the host in.
    pub host: Vec<HostConstruct>,
}

impl Profile {
    /// Looks through an optimized module.
    #[must_use]
    pub fn of(module: &Module, platform: Platform) -> Self {
        let mut walk = Walk { module, platform, profile: Self::default(), depth: 0 };
        walk.computation(module.entry(), 1);
        walk.profile
    }

    /// Launches of one kind in one step.
    #[must_use]
    pub fn launches(&self, kind: KernelKind) -> u64 {
        self.kernels.iter().filter(|k| k.kind == kind).map(|k| k.launches).fold(0, u64::saturating_add)
    }

    /// All launches in one step.
    #[must_use]
    pub fn all_launches(&self) -> u64 {
        KernelKind::ALL.into_iter().map(|kind| self.launches(kind)).fold(0, u64::saturating_add)
    }

    /// Bytes that all kernels read and write.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.kernels.iter().fold(0, |sum, k| k.bytes.saturating_mul(k.launches).saturating_add(sum))
    }

    /// Bytes that all kernels read from and write to main memory.
    #[must_use]
    pub fn main_memory_bytes(&self) -> u64 {
        self.kernels.iter().fold(0, |sum, k| k.main_memory_bytes.saturating_mul(k.launches).saturating_add(sum))
    }

    /// Floating-point operations of all kernels.
    #[must_use]
    pub fn flops(&self) -> u64 {
        self.kernels.iter().fold(0, |sum, k| k.flops.saturating_mul(k.launches).saturating_add(sum))
    }
}

/// Deeper calls than any compiler makes; a module that calls itself ends here.
const DEEPEST: usize = 64;

/// The memory space of the host in layouts, on all platforms.
const HOST_MEMORY: i64 = 5;

struct Walk<'m> {
    module: &'m Module,
    platform: Platform,
    profile: Profile,
    depth: usize,
}

impl Walk<'_> {
    fn computation(&mut self, id: ComputationId, launches: u64) {
        let Some(computation) = self.module.computation(id).filter(|_| self.depth < DEEPEST) else { return };
        self.depth += 1;
        for (id, instruction) in computation.instructions() {
            self.instruction(computation, id, instruction, launches);
        }
        self.depth -= 1;
    }

    fn instruction(&mut self, within: &Computation, id: InstructionId, i: &Instruction, launches: u64) {
        use Opcode as O;
        let kind = match i.opcode {
            O::Parameter
            | O::Constant
            | O::Tuple
            | O::GetTupleElement
            | O::Bitcast
            | O::AfterAll
            | O::AddDependency
            | O::OptimizationBarrier
            | O::Domain
            | O::PartitionId
            | O::ReplicaId
            | O::GetDimensionSize
            | O::AsyncUpdate
            | O::AsyncDone
            | O::CopyDone
            | O::AllReduceDone
            | O::AllGatherDone
            | O::CollectivePermuteDone => return,
            O::Infeed | O::Outfeed => return self.host(i, i.opcode.name()),
            O::Send | O::SendDone | O::Recv | O::RecvDone if i.attributes.is_host_transfer => {
                return self.host(i, i.opcode.name());
            }
            O::SendDone | O::RecvDone => return,
            O::Call | O::AsyncStart => return self.called(i, launches),
            O::While => {
                let trips = trip_count(self.module, within, i, self.platform);
                if trips.is_none() {
                    self.host(i, "while without a known trip count");
                }
                return self.called(i, launches.saturating_mul(trips.unwrap_or(1)));
            }
            O::Conditional => {
                self.host(i, "conditional");
                return self.called(i, launches);
            }
            O::CustomCall => {
                let target = i.attributes.custom_call_target.as_str();
                if is_host_callback(target) {
                    self.host(i, &format!("host callback {target}"));
                }
                if is_marker(target) {
                    return;
                }
                KernelKind::Call
            }
            O::Fusion if self.names_only(i) => return,
            O::Fusion => KernelKind::Fusion,
            O::Copy | O::CopyStart => KernelKind::Copy,
            // On CPU, a product by itself is Eigen's.
            O::Dot | O::Convolution if self.platform == Platform::Cpu => KernelKind::Call,
            O::Send | O::Recv => KernelKind::Collective,
            _ if i.is_collective() => KernelKind::Collective,
            _ if self.platform == Platform::Tpu && i.shape.is_scalar() => KernelKind::Scalar,
            _ => KernelKind::Other,
        };
        if kind == KernelKind::Copy && moves_to_or_from_host(within, i) {
            self.host(i, "copy to or from host memory");
        }
        if kind == KernelKind::Collective {
            let bytes = i.shape.byte_size();
            self.profile.collectives.push(Collective {
                name: i.name.clone(),
                opcode: i.opcode_name().to_owned(),
                launches,
                bytes,
                op_name: i.op_name().to_owned(),
            });
        }
        let mut contents = Contents::default();
        self.contents(within, id, &mut contents);
        let Contents { controller_ops, other_ops, mut signature, unnamed } = contents;
        if signature.is_empty() && controller_ops.is_empty() {
            signature = unnamed;
        }
        signature.sort_unstable();
        let [bytes, main_memory_bytes] =
            [Memories::All, Memories::Main].map(|memories| cost::bytes(self.module, within, i, memories));
        let flops = cost::flops(self.module, within, i);
        let controller_ops = controller_ops.into_iter().collect();
        let name = i.name.clone();
        self.profile.kernels.push(Kernel {
            name,
            kind,
            launches,
            controller_ops,
            other_ops,
            bytes,
            main_memory_bytes,
            flops,
            product_flops: cost::product_flops(self.module, within, i),
            signature,
        });
    }

    fn called(&mut self, i: &Instruction, launches: u64) {
        for &called in &i.called {
            self.computation(called, launches);
        }
    }

    fn host(&mut self, i: &Instruction, what: &str) {
        let construct = HostConstruct { name: i.name.clone(), what: what.to_owned(), op_name: i.op_name().to_owned() };
        self.profile.host.push(construct);
    }

    /// Whether a fusion does nothing but rename a value.
    fn names_only(&self, fusion: &Instruction) -> bool {
        let body = fusion.called.first().and_then(|&id| self.module.computation(id));
        body.is_some_and(|body| {
            body.instructions().all(|(_, i)| {
                matches!(
                    i.opcode,
                    Opcode::Parameter | Opcode::Bitcast | Opcode::Tuple | Opcode::GetTupleElement | Opcode::Constant
                )
            })
        })
    }

    /// Whose operations are in a kernel.
    fn contents(&self, within: &Computation, id: InstructionId, contents: &mut Contents) {
        let Some(i) = within.get(id) else { return };
        let bodies: Vec<_> = i.called.iter().filter_map(|&id| self.module.computation(id)).collect();
        if i.opcode == Opcode::Fusion {
            for body in bodies {
                for (id, inner) in body.instructions() {
                    if inner.opcode != Opcode::Parameter && inner.opcode != Opcode::Constant {
                        self.contents(body, id, contents);
                    }
                }
            }
            return;
        }
        // One instruction can stand for several: the compiler joins their names.
        let mut controller = false;
        for name in i.op_name().split(';').filter(|name| name.starts_with(CONTROLLER)) {
            controller = true;
            contents.controller_ops.insert(name.to_owned());
        }
        if controller {
            return;
        }
        if matches!(i.opcode, Opcode::Tuple | Opcode::GetTupleElement | Opcode::Bitcast) {
            return;
        }
        let operation = format!("{} {} {}", i.opcode_name(), i.shape.element_type().name(), i.op_name());
        // What the compiler made itself has no name, and counts where nothing else is there.
        if i.op_name().is_empty() {
            contents.unnamed.push(operation);
        } else {
            contents.other_ops += 1;
            contents.signature.push(operation);
        }
    }
}

#[derive(Default)]
struct Contents {
    controller_ops: BTreeSet<String>,
    other_ops: usize,
    signature: Vec<String>,
    unnamed: Vec<String>,
}

/// Whether a custom call of that target calls back into the host program.
fn is_host_callback(target: &str) -> bool {
    let target = target.to_ascii_lowercase();
    target.contains("callback") || target.contains("hostcompute")
}

/// Whether a custom call of that target only marks or reserves something.
fn is_marker(target: &str) -> bool {
    matches!(
        target,
        "AllocateBuffer"
            | "CreateBuffer"
            | "Sharding"
            | "SPMDFullToShardShape"
            | "SPMDShardToFullShape"
            | "annotate_device_placement"
    )
}

fn moves_to_or_from_host(within: &Computation, copy: &Instruction) -> bool {
    let in_host = |shape: &hlo::Shape| {
        shape.leaves().any(|leaf| leaf.0.layout.as_option().is_some_and(|layout| layout.memory_space == HOST_MEMORY))
    };
    in_host(&copy.shape) || copy.operands.iter().filter_map(|&id| within.get(id)).any(|i| in_host(&i.shape))
}
