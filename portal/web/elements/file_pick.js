// A button that opens the system's file chooser and hands over a text file's name and content.
export default {
  template: `
    <div class="stack stack-tight">
      <input ref="input" type="file" class="sr-only" :accept="accept" :aria-label="label" tabindex="-1" @change="read" />
      <div class="line">
        <button type="button" class="btn" @click="$refs.input.click()">{{ label }}</button>
        <span class="muted small">{{ name || "No file chosen" }}</span>
      </div>
    </div>
  `,
  props: { label: String, accept: String, limit: { type: Number, default: 500000 } },
  data() {
    return { name: "" };
  },
  methods: {
    async read(event) {
      const file = event.target.files[0];
      if (!file) return;
      this.name = file.name;
      if (file.size > this.limit) {
        this.$emit("refused", `${file.name} has ${file.size} bytes; a service may have ${this.limit}.`);
        return;
      }
      this.$emit("picked", { name: file.name, text: await file.text() });
    },
  },
};
