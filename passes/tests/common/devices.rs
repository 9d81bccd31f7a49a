//! Running modules on several devices of the CPU plugin.

use std::sync::OnceLock;

use hlo::Module;
use hlo::partitioning::{Partitioner, Partitioning};
use pjrt::{Buffer, Client, CompileOptions, Executable, ExecuteOptions, Plugin, Program};

use super::{Array, Contraction, plugin_file};

/// Devices of [`client`].
pub const DEVICES: usize = 8;

/// A CPU client with [`DEVICES`] devices.
pub fn client() -> &'static Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    CLIENT.get_or_init(|| {
        let plugin = Plugin::load(&plugin_file())
            .unwrap_or_else(|error| panic!("{error}\nrun `make plugin`, or set ENTROPIC_PLUGIN_DIR"));
        Client::create(&plugin, &[("cpu_device_count", (DEVICES as i64).into())]).unwrap()
    })
}

/// How a module is spread over devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// So many replicas.
    Replicas(usize),
    /// So many partitions, by the shardings in the module, which Shardy reads or the older partitioner does.
    Partitions { count: usize, shardy: bool },
}

impl Over {
    /// As the shardings in the module say.
    pub fn partitions_of(module: &Module) -> Self {
        let Partitioning { partitioner, partitions, .. } =
            Partitioning::of(module).unwrap().expect("a partitioned module");
        Self::Partitions { count: partitions, shardy: partitioner == Partitioner::Shardy }
    }
}

/// A module compiled for several devices.
pub struct Spread {
    executable: Executable,
}

impl Spread {
    pub fn new(module: &Module, over: Over) -> Self {
        Self::with(module, over, Contraction::Indifferent)
    }

    pub fn with(module: &Module, over: Over, contraction: Contraction) -> Self {
        hlo::verify::verify(module).unwrap();
        let mut options = CompileOptions::default();
        match over {
            Over::Replicas(count) => options.num_replicas = count,
            Over::Partitions { count, shardy } => {
                options.num_partitions = count;
                options.use_spmd_partitioning = true;
                options.use_shardy_partitioner = shardy;
                if let Some(partitioning) = Partitioning::of(module).unwrap() {
                    options.allow_spmd_sharding_propagation_to_output = partitioning.open_outputs(module);
                    options.allow_spmd_sharding_propagation_to_parameters = partitioning.open_parameters(module);
                }
            }
        }
        options.env_option_overrides.extend(contraction.flags());
        Self { executable: client().compile(&Program::hlo(&module.export()), &options).unwrap() }
    }

    /// What the compiler made of it, as an `HloModuleProtoWithConfig`.
    pub fn optimized(&self) -> Vec<u8> {
        self.executable.compiled().optimized_program().unwrap().code
    }

    /// Runs it on copies of the inputs, one list per device; with partitions, each device is given its part.
    pub fn run(&self, inputs: &[Vec<Array>]) -> Vec<Vec<Array>> {
        assert_eq!(inputs.len(), self.executable.num_devices());
        let upload = |device: usize, a: &Array| {
            let device = client().device(device).unwrap();
            client().buffer_from_host(&a.bytes, a.element_type, &a.dims, device).unwrap()
        };
        let buffers: Vec<Vec<Buffer>> =
            inputs.iter().enumerate().map(|(device, list)| list.iter().map(|a| upload(device, a)).collect()).collect();
        let lists: Vec<Vec<&Buffer>> = buffers.iter().map(|list| list.iter().collect()).collect();
        let outputs = self.executable.execute(&lists, &ExecuteOptions::default()).unwrap().outputs;
        let download = |b: &Buffer| Array {
            element_type: b.element_type().unwrap(),
            dims: b.dims().unwrap().to_vec(),
            bytes: b.to_vec().unwrap(),
        };
        outputs.iter().map(|list| list.iter().map(download).collect()).collect()
    }
}
