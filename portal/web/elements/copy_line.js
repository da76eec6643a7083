// A command or a code to take along: shown whole, selected by a click, copied by the button.
export default {
  template: `
    <div class="copyline" :class="{ 'copyline-large': large }">
      <code ref="text" class="copyline-text" tabindex="0" :aria-label="label" @click="select">{{ text }}</code>
      <button type="button" class="btn btn-small" @click="copy">{{ done ? "Copied" : "Copy" }}<span class="sr-only"> {{ label }}</span></button>
      <span class="sr-only" role="status">{{ done ? label + " copied" : "" }}</span>
    </div>
  `,
  props: { text: String, label: String, large: Boolean },
  data() {
    return { done: false };
  },
  methods: {
    select() {
      getSelection().selectAllChildren(this.$refs.text);
    },
    async copy() {
      try {
        await navigator.clipboard.writeText(this.text);
      } catch {
        // Without HTTPS a browser offers no clipboard; the selection does it.
        this.select();
        document.execCommand("copy");
      }
      this.done = true;
      clearTimeout(this.timer);
      this.timer = setTimeout(() => (this.done = false), 2000);
    },
  },
};
