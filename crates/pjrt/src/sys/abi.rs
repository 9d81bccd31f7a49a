//! The memory layout of the PJRT C API: argument structs, the function table, and nothing else.
//!
//! Field order, slot order and sizes are facts of the ABI and are pinned by `abi_tests`. Every argument struct
//! starts with its own size, and a plugin refuses a struct that is smaller than the one it was built with, so each
//! struct here has the fields of 0.114. Plugins of 0.116 and 0.117, given too small a struct, ask for no more. A
//! plugin never looks beyond the fields that it knows, so older ones accept them too.

use std::ffi::{c_char, c_void};

/// Every argument struct: a plain C struct that may be all zeros and that carries its own size in front.
///
/// # Safety
///
/// The type is `repr(C)`, begins with `struct_size: usize` and `extension_start: *mut c_void`,
/// and consists of integers, floats and raw pointers only, so that the all-zero pattern is a value of it.
pub(crate) unsafe trait Args: Sized {
    /// Bytes from the start of the struct to the end of its last field, without tail padding.
    const STRUCT_SIZE: usize;

    /// A struct with its size filled in and everything else zero.
    fn new() -> Self {
        // SAFETY: the trait's contract says that all zeros is a value of this type, and that
        // the struct begins with its size.
        unsafe {
            let mut args: Self = std::mem::zeroed();
            (&raw mut args).cast::<usize>().write(Self::STRUCT_SIZE);
            args
        }
    }
}

macro_rules! opaque {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[repr(C)]
        pub(crate) struct $name {
            _private: [u8; 0],
        }
    )*};
}

opaque!(
    Error,
    Event,
    Client,
    Device,
    DeviceDescription,
    Executable,
    LoadedExecutable,
    Buffer,
    SerializedExecutable,
    TopologyDescription,
);

macro_rules! args {
    ($($(#[$doc:meta])* $name:ident $(<$generic:ident>)? { $($field:ident: $type:ty),* ; $last:ident: $last_type:ty $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        pub(crate) struct $name $(<$generic>)? {
            pub(crate) struct_size: usize,
            pub(crate) extension_start: *mut c_void,
            $(pub(crate) $field: $type,)*
            pub(crate) $last: $last_type,
        }

        // SAFETY: `repr(C)`, the two leading fields are as required, and the fields listed with the macro
        // are integers, floats, raw pointers, and structs or unions of these.
        unsafe impl $(<$generic>)? Args for $name $(<$generic>)? {
            const STRUCT_SIZE: usize = std::mem::offset_of!(Self, $last) + std::mem::size_of::<$last_type>();
        }
    )*};
}

/// The value of a [`NamedValue`]; which member is live is told by its `kind`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) union NamedValueData {
    pub(crate) string: *const c_char,
    pub(crate) int64: i64,
    pub(crate) int64_list: *const i64,
    pub(crate) float: f32,
    /// A C `bool`, read as a byte so that no value of it is undefined behaviour.
    pub(crate) boolean: u8,
}

/// `PJRT_NamedValue_Type`.
pub(crate) mod named_value_kind {
    pub(crate) const STRING: i32 = 0;
    pub(crate) const INT64: i32 = 1;
    pub(crate) const INT64_LIST: i32 = 2;
    pub(crate) const FLOAT: i32 = 3;
    pub(crate) const BOOL: i32 = 4;
}

/// `PJRT_HostBufferSemantics_kImmutableOnlyDuringCall`.
pub(crate) const IMMUTABLE_ONLY_DURING_CALL: i32 = 0;

/// `PJRT_Buffer_MemoryLayout_Type_Tiled`.
pub(crate) const LAYOUT_TILED: i32 = 0;

args! {
    ErrorMessageArgs { error: *const Error, message: *const c_char; message_size: usize }
    ErrorGetCodeArgs { error: *const Error; code: i32 }

    /// The struct of every function that takes one object and returns nothing.
    ObjectArgs<T> { ; object: *mut T }

    NamedValue { name: *const c_char, name_size: usize, kind: i32, data: NamedValueData; value_size: usize }
    PluginAttributesArgs { attributes: *const NamedValue; num_attributes: usize }

    EventIsReadyArgs { event: *mut Event; is_ready: u8 }

    ClientCreateArgs {
        create_options: *const NamedValue,
        num_options: usize,
        kv_get_callback: *const c_void,
        kv_get_user_arg: *mut c_void,
        kv_put_callback: *const c_void,
        kv_put_user_arg: *mut c_void,
        client: *mut Client,
        kv_try_get_callback: *const c_void;
        kv_try_get_user_arg: *mut c_void,
    }

    /// The struct of every function that takes one object and returns a string owned by it.
    StringArgs<T> { object: *mut T, string: *const c_char; string_size: usize }

    /// The struct of every function that takes one object and returns an `int`.
    IntArgs<T> { object: *mut T; value: i32 }

    /// The struct of every function that takes one object and returns a `bool`.
    BoolArgs<T> { object: *mut T; value: u8 }

    /// The struct of every function that takes one object and returns a `size_t`.
    SizeArgs<T> { object: *mut T; value: usize }

    /// The struct of every function that takes one object and returns a list of devices owned by it.
    DevicesArgs<T> { object: *mut T, devices: *const *mut Device; num_devices: usize }

    DeviceGetDescriptionArgs { device: *mut Device; device_description: *mut DeviceDescription }

    Program { code: *mut c_char, code_size: usize, format: *const c_char; format_size: usize }

    ClientCompileArgs {
        client: *mut Client,
        program: *const Program,
        compile_options: *const c_char,
        compile_options_size: usize;
        executable: *mut LoadedExecutable,
    }

    MemoryLayoutTiled {
        minor_to_major: *const i64,
        minor_to_major_size: usize,
        tile_dims: *const i64,
        tile_dim_sizes: *const usize;
        num_tiles: usize,
    }

    /// `PJRT_Buffer_MemoryLayout`. Its union of tiled and strided layouts is as large as the tiled one.
    MemoryLayout { tiled: MemoryLayoutTiled; kind: i32 }

    ClientBufferFromHostBufferArgs {
        client: *mut Client,
        data: *const c_void,
        element_type: i32,
        dims: *const i64,
        num_dims: usize,
        byte_strides: *const i64,
        num_byte_strides: usize,
        host_buffer_semantics: i32,
        device: *mut Device,
        memory: *mut c_void,
        device_layout: *mut MemoryLayout,
        done_with_host_buffer: *mut Event;
        buffer: *mut Buffer,
    }

    LoadedExecutableGetExecutableArgs {
        loaded_executable: *mut LoadedExecutable;
        executable: *mut Executable,
    }

    ExecutableOptimizedProgramArgs { executable: *mut Executable; program: *mut Program }

    ExecutableGetCostAnalysisArgs {
        executable: *mut Executable,
        num_properties: usize;
        properties: *const NamedValue,
    }

    ExecutableGetCompiledMemoryStatsArgs {
        executable: *mut Executable,
        generated_code_size_in_bytes: i64,
        argument_size_in_bytes: i64,
        output_size_in_bytes: i64,
        alias_size_in_bytes: i64,
        temp_size_in_bytes: i64,
        host_generated_code_size_in_bytes: i64,
        host_argument_size_in_bytes: i64,
        host_output_size_in_bytes: i64,
        host_alias_size_in_bytes: i64,
        host_temp_size_in_bytes: i64,
        peak_memory_in_bytes: i64,
        total_size_in_bytes: i64,
        total_allocation_bytes: i64,
        indefinite_allocations: i64;
        peak_unpadded_heap_bytes: i64,
    }

    ExecutableSerializeArgs {
        executable: *const Executable,
        serialized_bytes: *const c_char,
        serialized_bytes_size: usize,
        serialized_executable: *mut SerializedExecutable;
        serialized_executable_deleter: Option<unsafe extern "C" fn(*mut SerializedExecutable)>,
    }

    ExecutableDeserializeAndLoadArgs {
        client: *mut Client,
        serialized_executable: *const c_char,
        serialized_executable_size: usize,
        loaded_executable: *mut LoadedExecutable,
        overridden_serialized_compile_options: *const c_char;
        overridden_serialized_compile_options_size: usize,
    }

    ExecuteOptions {
        send_callbacks: *mut *mut c_void,
        recv_callbacks: *mut *mut c_void,
        num_send_ops: usize,
        num_recv_ops: usize,
        launch_id: i32,
        non_donatable_input_indices: *const i64,
        num_non_donatable_input_indices: usize,
        context: *mut c_void,
        call_location: *const c_char,
        num_tasks: usize,
        task_ids: *mut i32,
        incarnation_ids: *mut i64,
        multi_slice_config: *mut c_void,
        use_major_to_minor_data_layout_for_callbacks: u8,
        hlo_output_callbacks: *mut c_void,
        num_hlo_output_callbacks: usize,
        custom_options: *const NamedValue;
        num_custom_options: usize,
    }

    LoadedExecutableExecuteArgs {
        executable: *mut LoadedExecutable,
        options: *mut ExecuteOptions,
        argument_lists: *const *const *mut Buffer,
        num_devices: usize,
        num_args: usize,
        output_lists: *const *mut *mut Buffer,
        device_complete_events: *mut *mut Event;
        execute_device: *mut Device,
    }

    BufferElementTypeArgs { buffer: *mut Buffer; element_type: i32 }
    BufferDimensionsArgs { buffer: *mut Buffer, dims: *const i64; num_dims: usize }

    BufferToHostBufferArgs {
        src: *mut Buffer,
        host_layout: *mut MemoryLayout,
        dst: *mut c_void,
        dst_size: usize;
        event: *mut Event,
    }

    BufferReadyEventArgs { buffer: *mut Buffer; event: *mut Event }

    TopologyDescriptionCreateArgs {
        topology_name: *const c_char,
        topology_name_size: usize,
        create_options: *const NamedValue,
        num_options: usize;
        topology: *mut TopologyDescription,
    }

    TopologyDescriptionGetDeviceDescriptionsArgs {
        topology: *mut TopologyDescription,
        descriptions: *const *mut DeviceDescription;
        num_descriptions: usize,
    }

    /// Of `PJRT_Compile`, which needs no client.
    CompileArgs {
        topology: *const TopologyDescription,
        program: *const Program,
        compile_options: *const c_char,
        compile_options_size: usize,
        client: *mut Client;
        executable: *mut Executable,
    }
}

/// `PJRT_Plugin_Initialize_Args`: the two leading fields and nothing else.
#[repr(C)]
pub(crate) struct NoArgs {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut c_void,
}

// SAFETY: `repr(C)` with exactly the two required fields.
unsafe impl Args for NoArgs {
    const STRUCT_SIZE: usize = std::mem::size_of::<Self>();
}

/// `PJRT_Api_Version`, which lies inside the table.
#[repr(C)]
pub(crate) struct ApiVersionFields {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut c_void,
    pub(crate) major: i32,
    pub(crate) minor: i32,
}

/// The head of `PJRT_Api`. One function pointer per slot follows it directly.
#[repr(C)]
pub(crate) struct TableHead {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut c_void,
    pub(crate) version: ApiVersionFields,
}

/// A function of the table: its name in C, its position after the head, and the struct that it takes.
pub(crate) trait Function {
    /// The C name, as in `PJRT_Client_Create`.
    const NAME: &'static str;
    /// Position among the function pointers, counted from zero.
    const SLOT: usize;
    /// The argument struct.
    type Args: Args;
}

macro_rules! functions {
    ($($slot:literal $name:ident($args:ty);)*) => {
        $(
            #[doc = concat!("`PJRT_", stringify!($name), "`, slot ", stringify!($slot), ".")]
            #[allow(non_camel_case_types)]
            pub(crate) enum $name {}

            impl Function for $name {
                const NAME: &'static str = concat!("PJRT_", stringify!($name));
                const SLOT: usize = $slot;
                type Args = $args;
            }
        )*

        /// Name and slot of every function that this crate calls.
        #[cfg(test)]
        pub(crate) const FUNCTIONS: &[(&str, usize)] =
            &[$((concat!("PJRT_", stringify!($name)), $slot)),*];
    };
}

functions! {
    0 Error_Destroy(ObjectArgs<Error>);
    1 Error_Message(ErrorMessageArgs);
    2 Error_GetCode(ErrorGetCodeArgs);
    3 Plugin_Initialize(NoArgs);
    4 Plugin_Attributes(PluginAttributesArgs);
    5 Event_Destroy(ObjectArgs<Event>);
    6 Event_IsReady(EventIsReadyArgs);
    8 Event_Await(ObjectArgs<Event>);
    10 Client_Create(ClientCreateArgs);
    11 Client_Destroy(ObjectArgs<Client>);
    12 Client_PlatformName(StringArgs<Client>);
    14 Client_PlatformVersion(StringArgs<Client>);
    15 Client_Devices(DevicesArgs<Client>);
    16 Client_AddressableDevices(DevicesArgs<Client>);
    20 Client_Compile(ClientCompileArgs);
    22 Client_BufferFromHostBuffer(ClientBufferFromHostBufferArgs);
    23 DeviceDescription_Id(IntArgs<DeviceDescription>);
    24 DeviceDescription_ProcessIndex(IntArgs<DeviceDescription>);
    26 DeviceDescription_Kind(StringArgs<DeviceDescription>);
    28 DeviceDescription_ToString(StringArgs<DeviceDescription>);
    29 Device_GetDescription(DeviceGetDescriptionArgs);
    31 Device_LocalHardwareId(IntArgs<Device>);
    40 Executable_Destroy(ObjectArgs<Executable>);
    41 Executable_Name(StringArgs<Executable>);
    44 Executable_NumOutputs(SizeArgs<Executable>);
    46 Executable_GetCostAnalysis(ExecutableGetCostAnalysisArgs);
    48 Executable_OptimizedProgram(ExecutableOptimizedProgramArgs);
    49 Executable_Serialize(ExecutableSerializeArgs);
    50 LoadedExecutable_Destroy(ObjectArgs<LoadedExecutable>);
    51 LoadedExecutable_GetExecutable(LoadedExecutableGetExecutableArgs);
    52 LoadedExecutable_AddressableDevices(DevicesArgs<LoadedExecutable>);
    55 LoadedExecutable_Execute(LoadedExecutableExecuteArgs);
    56 Executable_DeserializeAndLoad(ExecutableDeserializeAndLoadArgs);
    58 Buffer_Destroy(ObjectArgs<Buffer>);
    59 Buffer_ElementType(BufferElementTypeArgs);
    60 Buffer_Dimensions(BufferDimensionsArgs);
    67 Buffer_Delete(ObjectArgs<Buffer>);
    68 Buffer_IsDeleted(BoolArgs<Buffer>);
    70 Buffer_ToHostBuffer(BufferToHostBufferArgs);
    72 Buffer_ReadyEvent(BufferReadyEventArgs);
    82 TopologyDescription_Create(TopologyDescriptionCreateArgs);
    83 TopologyDescription_Destroy(ObjectArgs<TopologyDescription>);
    84 TopologyDescription_PlatformName(StringArgs<TopologyDescription>);
    85 TopologyDescription_PlatformVersion(StringArgs<TopologyDescription>);
    86 TopologyDescription_GetDeviceDescriptions(TopologyDescriptionGetDeviceDescriptionsArgs);
    89 Compile(CompileArgs);
    94 Executable_Fingerprint(StringArgs<Executable>);
    96 Executable_GetCompiledMemoryStats(ExecutableGetCompiledMemoryStatsArgs);
}
