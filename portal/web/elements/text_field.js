// One native text control with its label, hint and error, so that every field on every page reads and behaves alike.
export default {
  template: `
    <div class="field" :class="{ 'field-wrong': error }">
      <label class="field-label" :class="{ 'sr-only': labelHidden }" :for="controlId">{{ label }}</label>
      <textarea v-if="rows" ref="control" class="control" :class="{ data: mono }" :id="controlId" :rows="rows" v-model="inner"
        :placeholder="placeholder" :disabled="disable" :aria-invalid="!!error" :aria-describedby="described" spellcheck="false"></textarea>
      <input v-else ref="control" class="control" :class="{ data: mono }" :id="controlId" :type="type" v-model="inner"
        :placeholder="placeholder" :disabled="disable" :autocomplete="autocomplete" :list="suggestions.length ? listId : null"
        :aria-invalid="!!error" :aria-describedby="described" :required="required" autocapitalize="off" spellcheck="false"
        :inputmode="inputmode" />
      <datalist v-if="suggestions.length" :id="listId">
        <option v-for="each in suggestions" :key="each" :value="each"></option>
      </datalist>
      <div v-if="error" class="field-error" :id="errorId" role="alert">{{ error }}</div>
      <div v-else-if="hint" class="field-hint" :id="hintId">{{ hint }}</div>
    </div>
  `,
  props: {
    id: String,
    value: String,
    label: String,
    labelHidden: Boolean,
    hint: String,
    error: String,
    type: { type: String, default: "text" },
    placeholder: String,
    autocomplete: { type: String, default: "off" },
    inputmode: String,
    suggestions: { type: Array, default: () => [] },
    rows: Number,
    mono: Boolean,
    required: Boolean,
    disable: Boolean,
  },
  data() {
    return { inner: this.value ?? "", emitting: true };
  },
  computed: {
    controlId() {
      return this.id + "-control";
    },
    listId() {
      return this.id + "-list";
    },
    hintId() {
      return this.id + "-hint";
    },
    errorId() {
      return this.id + "-error";
    },
    described() {
      return this.error ? this.errorId : this.hint ? this.hintId : null;
    },
  },
  watch: {
    value(fresh) {
      this.emitting = false;
      this.inner = fresh ?? "";
      this.$nextTick(() => (this.emitting = true));
    },
    inner(fresh) {
      if (this.emitting) this.$emit("update:value", fresh);
    },
  },
  methods: {
    updateValue() {
      this.inner = this.value ?? "";
    },
    focus() {
      this.$refs.control.focus();
    },
  },
};
