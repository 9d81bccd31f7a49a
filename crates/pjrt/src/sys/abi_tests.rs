//! Pins the layouts: sizes and offsets of 64-bit PJRT API 0.81, and how far our structs extend beyond them.

use super::abi::*;

macro_rules! check {
    ($type:ty, header $header:literal, ours $ours:literal $(, $field:ident $offset:literal)* $(,)?) => {
        assert_eq!(<$type>::STRUCT_SIZE, $ours, "declared size of {}", stringify!($type));
        assert!(<$type>::STRUCT_SIZE >= $header, "{} is smaller than API 0.81 wants", stringify!($type));
        assert_eq!(std::mem::size_of::<$type>(), usize::next_multiple_of($ours, 8), "size of {}", stringify!($type));
        assert_eq!(std::mem::offset_of!($type, struct_size), 0);
        assert_eq!(std::mem::offset_of!($type, extension_start), 8);
        $(assert_eq!(std::mem::offset_of!($type, $field), $offset, "{}.{}", stringify!($type), stringify!($field));)*
        assert_eq!(<$type>::new().struct_size, $ours);
        assert!(<$type>::new().extension_start.is_null());
    };
}

#[test]
fn argument_structs() {
    check!(NoArgs, header 16, ours 16);
    check!(ObjectArgs<Buffer>, header 24, ours 24, object 16);
    check!(ErrorMessageArgs, header 40, ours 40, error 16, message 24, message_size 32);
    check!(ErrorGetCodeArgs, header 28, ours 28, error 16, code 24);
    check!(NamedValue, header 56, ours 56, name 16, name_size 24, kind 32, data 40, value_size 48);
    check!(PluginAttributesArgs, header 32, ours 32, attributes 16, num_attributes 24);
    check!(EventIsReadyArgs, header 25, ours 25, event 16, is_ready 24);
    check!(
        ClientCreateArgs, header 88, ours 88,
        create_options 16, num_options 24, kv_get_callback 32, kv_get_user_arg 40, kv_put_callback 48, kv_put_user_arg 56,
        client 64, kv_try_get_callback 72, kv_try_get_user_arg 80,
    );
    check!(StringArgs<Client>, header 40, ours 40, object 16, string 24, string_size 32);
    check!(IntArgs<Device>, header 28, ours 28, object 16, value 24);
    check!(BoolArgs<Buffer>, header 25, ours 25, object 16, value 24);
    check!(SizeArgs<Executable>, header 32, ours 32, object 16, value 24);
    check!(DevicesArgs<Client>, header 40, ours 40, object 16, devices 24, num_devices 32);
    check!(DeviceGetDescriptionArgs, header 32, ours 32, device 16, device_description 24);
    check!(Program, header 48, ours 48, code 16, code_size 24, format 32, format_size 40);
    check!(
        ClientCompileArgs, header 56, ours 56,
        client 16, program 24, compile_options 32, compile_options_size 40, executable 48,
    );
    check!(
        MemoryLayoutTiled, header 56, ours 56,
        minor_to_major 16, minor_to_major_size 24, tile_dims 32, tile_dim_sizes 40, num_tiles 48,
    );
    check!(MemoryLayout, header 76, ours 76, tiled 16, kind 72);
    check!(
        ClientBufferFromHostBufferArgs, header 120, ours 120,
        client 16, data 24, element_type 32, dims 40, num_dims 48, byte_strides 56, num_byte_strides 64,
        host_buffer_semantics 72, device 80, memory 88, device_layout 96, done_with_host_buffer 104, buffer 112,
    );
    check!(LoadedExecutableGetExecutableArgs, header 32, ours 32, loaded_executable 16, executable 24);
    check!(ExecutableOptimizedProgramArgs, header 32, ours 32, executable 16, program 24);
    check!(ExecutableGetCostAnalysisArgs, header 40, ours 40, executable 16, num_properties 24, properties 32);
    check!(
        ExecutableGetCompiledMemoryStatsArgs, header 112, ours 144,
        executable 16, generated_code_size_in_bytes 24, argument_size_in_bytes 32, output_size_in_bytes 40,
        alias_size_in_bytes 48, temp_size_in_bytes 56, host_generated_code_size_in_bytes 64,
        host_argument_size_in_bytes 72, host_output_size_in_bytes 80, host_alias_size_in_bytes 88,
        host_temp_size_in_bytes 96, peak_memory_in_bytes 104, total_size_in_bytes 112, total_allocation_bytes 120,
        indefinite_allocations 128, peak_unpadded_heap_bytes 136,
    );
    check!(
        ExecutableSerializeArgs, header 56, ours 56,
        executable 16, serialized_bytes 24, serialized_bytes_size 32, serialized_executable 40,
        serialized_executable_deleter 48,
    );
    check!(
        ExecutableDeserializeAndLoadArgs, header 64, ours 64,
        client 16, serialized_executable 24, serialized_executable_size 32, loaded_executable 40,
        overridden_serialized_compile_options 48, overridden_serialized_compile_options_size 56,
    );
    check!(
        ExecuteOptions, header 112, ours 160,
        send_callbacks 16, recv_callbacks 24, num_send_ops 32, num_recv_ops 40, launch_id 48,
        non_donatable_input_indices 56, num_non_donatable_input_indices 64, context 72, call_location 80, num_tasks 88,
        task_ids 96, incarnation_ids 104, multi_slice_config 112, use_major_to_minor_data_layout_for_callbacks 120,
        hlo_output_callbacks 128, num_hlo_output_callbacks 136, custom_options 144, num_custom_options 152,
    );
    check!(
        LoadedExecutableExecuteArgs, header 80, ours 80,
        executable 16, options 24, argument_lists 32, num_devices 40, num_args 48, output_lists 56,
        device_complete_events 64, execute_device 72,
    );
    check!(BufferElementTypeArgs, header 28, ours 28, buffer 16, element_type 24);
    check!(BufferDimensionsArgs, header 40, ours 40, buffer 16, dims 24, num_dims 32);
    check!(BufferToHostBufferArgs, header 56, ours 56, src 16, host_layout 24, dst 32, dst_size 40, event 48);
    check!(BufferReadyEventArgs, header 32, ours 32, buffer 16, event 24);
    check!(
        TopologyDescriptionCreateArgs, header 56, ours 56,
        topology_name 16, topology_name_size 24, create_options 32, num_options 40, topology 48,
    );
    check!(
        TopologyDescriptionGetDeviceDescriptionsArgs, header 40, ours 40,
        topology 16, descriptions 24, num_descriptions 32,
    );
    check!(
        CompileArgs, header 64, ours 64,
        topology 16, program 24, compile_options 32, compile_options_size 40, client 48, executable 56,
    );
}

#[test]
fn the_table() {
    assert_eq!(std::mem::size_of::<TableHead>(), 40, "the first function pointer");
    assert_eq!(std::mem::offset_of!(TableHead, version), 16);
    assert_eq!(std::mem::offset_of!(ApiVersionFields, major), 16);
    assert_eq!(std::mem::offset_of!(ApiVersionFields, minor), 20);
    // Slots further back than these have moved between early versions; they are fixed since 0.57.
    let offset = |slot: usize| 40 + 8 * slot;
    assert_eq!(offset(Executable_GetCompiledMemoryStats::SLOT), 808);
    let slots: Vec<usize> = FUNCTIONS.iter().map(|(_, slot)| *slot).collect();
    assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "slots are listed once, in order");
}
