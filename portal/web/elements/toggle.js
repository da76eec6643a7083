// A switch that says its state in words too. The server decides: it moves only when the server has moved it.
export default {
  template: `
    <button type="button" class="toggle" role="switch" :aria-checked="value ? 'true' : 'false'" :aria-label="label"
      :disabled="disable" @click="$emit('update:value', !value)">
      <span class="toggle-track" aria-hidden="true"><span class="toggle-knob"></span></span>
      <span v-if="!bare" class="toggle-text">{{ label }} <span class="toggle-state">{{ value ? onText : offText }}</span></span>
      <span v-else class="toggle-state toggle-bare" aria-hidden="true">{{ value ? onText : offText }}</span>
    </button>
  `,
  props: {
    value: Boolean,
    label: String,
    bare: Boolean,
    disable: Boolean,
    onText: { type: String, default: "on" },
    offText: { type: String, default: "off" },
  },
  methods: {
    updateValue() {},
  },
};
