// A native select with its label: the system's own list on a phone, full keyboard use everywhere.
export default {
  template: `
    <div class="field">
      <label class="field-label" :class="{ 'sr-only': labelHidden }" :for="id + '-control'">{{ label }}</label>
      <select class="control" :id="id + '-control'" :value="inner" :disabled="disable" @change="choose">
        <option v-for="each in options" :key="each.value" :value="each.value">{{ each.label }}</option>
      </select>
      <div v-if="hint" class="field-hint">{{ hint }}</div>
    </div>
  `,
  props: { id: String, value: String, label: String, labelHidden: Boolean, hint: String, options: Array, disable: Boolean },
  data() {
    return { inner: this.value };
  },
  watch: {
    value(fresh) {
      this.inner = fresh;
    },
  },
  methods: {
    choose(event) {
      this.inner = event.target.value;
      this.$emit("update:value", this.inner);
    },
    updateValue() {
      this.inner = this.value;
    },
  },
};
