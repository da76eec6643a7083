"""A local Azure IoT Hub for demo, tests and service authors: `outstation iothub`, or `emulator.server.Emulator`."""
